#!/usr/bin/env bash
# Students that see not one image of the victim's data, from the demo's normal and nasty teachers, three seeds: about 20
# minutes on one core. Writes runs/ and report.* into the working directory.
set -eu
export OMP_NUM_THREADS=1

for attack in dafl deep_inversion fast_datafree dfme; do
    for teacher in teacher nasty_teacher; do
        for seed in 0 1 2; do
            undistill attack "demo/${attack}_cnn__from_${teacher}" seed="$seed"
        done
    done
done
undistill report runs --out report.html
