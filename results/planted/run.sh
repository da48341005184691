#!/usr/bin/env bash
# What the audit says of 20 victims whose soft answers give them away, and of the same behind answers that only look soft:
# 40 audits of nets without a hidden layer, about 20 minutes of one core's time. Writes undistill-studies here.
set -eu
export OMP_NUM_THREADS=1
undistill reproduce planted --seeds 20
