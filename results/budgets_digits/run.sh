#!/usr/bin/env bash
# What a nasty teacher's students lose for how much of its accuracy, on the small digits: 150 nets, nine minutes of one
# core's time.
# Writes undistill-studies into the working directory.
set -eu
export OMP_NUM_THREADS=1
undistill reproduce budgets 'data=[digits]' --seeds 5
