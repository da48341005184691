#!/usr/bin/env bash
# Where around MNIST nets still work: 9 of the table's nets; with those there, some minutes on one core.
# Needs mnist.npz (train_x, train_y, test_x, test_y), usps.npz and mnist_m.npz (x, y: 11,000 images without an official
# split, and the 9,001 of MNIST-M's test split) in the working directory; writes undistill-studies there.
set -eu
export OMP_NUM_THREADS=1
undistill reproduce ntl_figure --seeds 3 --jobs 1 \
    --data "mnist=npz(path='mnist.npz',subset=20000,test_subset=2000)" --data "usps=npz(path='usps.npz')" \
    --data "mnist_m=npz(path='mnist_m.npz')"
