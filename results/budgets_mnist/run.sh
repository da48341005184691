#!/usr/bin/env bash
# What a nasty teacher's students lose for how much of its accuracy, on MNIST: 90 nets, 35 minutes of one core's time.
# Needs mnist.npz (train_x, train_y, test_x, test_y) in the working directory; writes undistill-studies there.
set -eu
export OMP_NUM_THREADS=1
undistill reproduce budgets 'data=[mnist]' --seeds 3 --data "mnist=npz(path='mnist.npz')"
