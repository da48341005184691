#!/usr/bin/env bash
# What a thief gets for how many queries on MNIST: 258 nets, about an hour and a half of one core's time.
# Needs mnist.npz (train_x, train_y, test_x, test_y) and usps.npz (x, y: 11,000 images without an official split) in the
# working directory; writes undistill-studies there.
set -eu
export OMP_NUM_THREADS=1
undistill reproduce queries --seeds 3 --jobs 2 \
    --data "mnist=npz(path='mnist.npz')" --data "usps=npz(path='usps.npz')"
