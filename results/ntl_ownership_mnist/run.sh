#!/usr/bin/env bash
# Whose net is it? Marked and usual nets, as they are and fine-tuned: about 20 minutes on one core.
# Needs mnist.npz (train_x, train_y, test_x, test_y) in the working directory; writes undistill-studies there.
set -eu
export OMP_NUM_THREADS=1
undistill reproduce ntl_ownership --seeds 3 --jobs 1 --data "mnist=npz(path='mnist.npz',subset=20000,test_subset=2000)"
