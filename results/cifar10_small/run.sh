#!/usr/bin/env bash
# Nasty against normal on a part of CIFAR-10, with small nets, on a CPU: about 15 minutes on one core.
# Needs cifar10.npz (train_x, train_y, test_x, test_y) in the working directory; writes report.* there.
set -eu
export OMP_NUM_THREADS=1
common=(data="npz(path='cifar10.npz', augment='crop_flip', subset=5000, test_subset=2000)"
    epochs=20 schedule=one_cycle lr=0.1 holdout=0 selection=last)
teacher="cnn(channels=16)" student="cnn(channels=8)" defense="nasty(temperature=4, weight=0.1)"

folder() { python -c 'import json, sys; print(json.load(sys.stdin)["folder"])'; }

for seed in 0 1 2; do
    run=("${common[@]}" seed=$seed)
    normal=$(undistill train --json model="$teacher" "${run[@]}" | folder)
    nasty=$(undistill defend --json model="$teacher" method="$defense" "${run[@]}" | folder)
    undistill train model="$student" "${run[@]}"
    for method in "kd(temperature=4)" "kd(temperature=1)" hard_label; do
        undistill attack model="$student" method="$method" victim="$normal" "${run[@]}"
        undistill attack model="$student" method="$method" victim="$nasty" "${run[@]}"
    done
done
undistill report runs --out report.html
