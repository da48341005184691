#!/usr/bin/env bash
# Defenses of a small net on handwritten digits, each against three thieves, tuned: a customer with 300 of the owner's
# images and a stranger with 300 that are pieced together of 20 others; about half an hour on two cores.
# Writes undistill-audit and the folder entries into the working directory.
set -eu
export OMP_NUM_THREADS=1
means=(
    "model=mlp(hidden=(32,), relu_logits=False)" epochs=30 batch_size=64 optimizer=sgd lr=0.1 schedule=one_cycle
    --suite quick --insider 0 --queries 300
    --surrogate "collage(count=980, of=\"rest(of='digits(subset=1000)', subset=20)\")"
    --seeds 5 "$@"
)
audit() { # the audit of a victim: its fields, and output defenses behind --
    local victim=() policies=()
    while [ $# -gt 0 ]; do
        case "$1" in
        --policy) policies+=(--policy "$2"); shift 2 ;;
        *) victim+=("victim.$1"); shift ;;
        esac
    done
    folder=$(undistill audit "${victim[@]}" "${policies[@]}" "${means[@]}" | tail -1)
}
enter() { undistill leaderboard add "$(dirname "$folder")" --who undistill --to entries "$@"; }

audit recipe=demo/teacher --policy label_only --policy "rounding(digits=1)" --policy "top_k(k=2)" \
    --policy "temperature(temperature=0.3)" --policy reverse_sigmoid --policy dcp --policy modelguard_w \
    --policy "stingy(share=0.3)" --policy mad --policy gaussian_noise --policy reversed_ranks
enter
audit recipe=demo/teacher "method=label_smoothing(smoothing=0.1)"
enter --paper https://arxiv.org/abs/1512.00567
audit recipe=demo/nasty_teacher
enter --paper https://openreview.net/forum?id=0zvfm-nZqQs --flag "τ and ω are the demo's"
for method in half_nasty light_nasty "cmim(weight=1)" "cmim(weight=10)" ast "ast(paired=False)"; do
    audit recipe=demo/teacher "method=$method"
    enter
done
undistill leaderboard build entries
