#!/usr/bin/env bash
# What a nasty teacher does to a thief by how he trains, on the small digits: 300 nets, an hour and a half of one core's
# time. Writes undistill-studies into the working directory.
set -eu
export OMP_NUM_THREADS=1
undistill reproduce training --seeds 10 'thieves=[textbook, untempered, named]'
