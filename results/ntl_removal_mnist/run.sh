#!/usr/bin/env bash
# What a share of either domain does to a net that is closed to one of them: about half an hour on one core.
# Needs mnist.npz (train_x, train_y, test_x, test_y) and mnist_m.npz (x, y: the 9,001 images of
# MNIST-M's test split) in the working directory; writes undistill-studies there.
set -eu
export OMP_NUM_THREADS=1
undistill reproduce ntl_removal --seeds 3 --jobs 1 \
    --data "mnist=npz(path='mnist.npz',subset=20000,test_subset=2000)" \
    --data "mnist_m=npz(path='mnist_m.npz')"
