#!/usr/bin/env bash
# An audit of the demo's normal teacher, as it is and behind eleven defenses on its answers: a customer with 300 of its
# training images without labels, and a stranger with 300 that are pieced together of 20 others; a quarter of an hour on two
# cores. Writes undistill-audit into the working directory.
set -eu
export OMP_NUM_THREADS=1
undistill audit victim.recipe=demo/teacher \
    "model=mlp(hidden=(32,), relu_logits=False)" epochs=30 batch_size=64 optimizer=sgd lr=0.1 schedule=one_cycle \
    --suite quick --insider 0 --queries 300 --seeds 5 \
    --surrogate "collage(count=980, of=\"rest(of='digits(subset=1000)', subset=20)\")" \
    --policy label_only --policy "rounding(digits=1)" --policy "top_k(k=2)" --policy "temperature(temperature=0.3)" \
    --policy reverse_sigmoid --policy dcp --policy modelguard_w --policy "stingy(share=0.3)" --policy mad \
    --policy gaussian_noise --policy reversed_ranks
