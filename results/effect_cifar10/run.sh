#!/usr/bin/env bash
# Table 1 in the turbo protocol on all of CIFAR-10, one seed, one student, and two other ways to ask the nasty teacher:
# ten nets, about two and a half hours of one core's time.
# Needs cifar10.npz (train_x, train_y, test_x, test_y) in the working directory; writes undistill-studies there.
set -eu
export OMP_NUM_THREADS=1
undistill reproduce effect 'students=[cnn]' 'thieves=[textbook, untempered, named]' \
    --skip speedrun-budget --skip speedrun-budget-untempered --skip speedrun-budget-named \
    --skip speedrun-normal-untempered --skip speedrun-normal-named \
    --data "cifar10=npz(path='cifar10.npz', augment='crop_flip')"
