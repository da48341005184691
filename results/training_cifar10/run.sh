#!/usr/bin/env bash
# A thief who trains as the paper's does and one who trains by the turbo protocol, on all of CIFAR-10, one seed: ten
# nets, about two and a half hours of one core's time.
# Needs cifar10.npz (train_x, train_y, test_x, test_y) in the working directory; writes undistill-studies there.
set -eu
export OMP_NUM_THREADS=1
undistill reproduce training data=cifar10 'ways=[adam, muon]' 'thieves=[textbook, untempered]' \
    --skip normal-untempered --data "cifar10=npz(path='cifar10.npz', augment='crop_flip')"
