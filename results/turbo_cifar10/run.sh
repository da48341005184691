#!/usr/bin/env bash
# turbo on CIFAR-10, on one core of a CPU (about 25 minutes): the plain CNN on all images, by the recipe as it is; and a
# small CNN on a tenth of them, teachers and students, by turbo and by the whole protocol.
# Needs cifar10.npz (train_x, train_y, test_x, test_y) in the working directory; writes report.* there.
set -eu
export OMP_NUM_THREADS=1
whole="npz(path='cifar10.npz', augment='crop_flip')"
tenth="npz(path='cifar10.npz', augment='crop_flip', subset=5000, test_subset=2000)"
net="cnn(channels=8)"

folder() { python -c 'import json, sys; print(json.load(sys.stdin)["folder"])'; }

# A normal and a nasty teacher, and a student of each, by one protocol.
pair() {
    run=("$@" data="$tenth" model="$net")
    normal=$(undistill train --json "${run[@]}" | folder)
    nasty=$(undistill defend --json "${run[@]}" method="nasty(temperature=4, weight=0.1)" | folder)
    for victim in "$normal" "$nasty"; do
        undistill attack "${run[@]}" method="kd(temperature=4)" victim="$victim"
    done
}

undistill train turbo/cifar10/cnn data="$whole" seed=0
for seed in 0 1 2; do
    pair turbo/cifar10/cnn seed=$seed
done
pair paper/cifar10/cnn profile=fast seed=0
undistill report runs --out report.html
