#!/usr/bin/env bash
# What a nasty teacher does to a thief by how he trains, on the small digits: 150 nets, an hour of one core's time.
# Writes undistill-studies into the working directory.
set -eu
export OMP_NUM_THREADS=1
undistill reproduce training --seeds 5 'thieves=[textbook, untempered, named]'
