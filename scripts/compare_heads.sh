#!/usr/bin/env bash
# Trains the diffusion heads that docs/diffusion.md compares on one teacher, one after the other, and evaluates each:
#
#   bash scripts/compare_heads.sh runs/quickstart-sudoku runs/heads
#
# A head that is finished is left alone, so the same command goes on where it was stopped. STEPS, BATCH and PUZZLES set
# the updates of a head for single updates, the rows of each and the held-out puzzles of an evaluation; heads for whole
# H-cycles get half the updates and a quarter of the rows, which are many times as long. HEADS names some of the heads.
set -euo pipefail
teacher="$1" out="$2"
steps="${STEPS:-3000}" batch="${BATCH:-384}" puzzles="${PUZZLES:-1000}"
python="${PYTHON:-python}"
half=$((steps / 2)) quarter=$((batch / 4))

run() { # name, sampling steps, options of diffusion_train.py
    local name="$1" sampling="$2"
    shift 2
    [[ " ${HEADS:-$name} " == *" $name "* ]] || return 0
    echo "== $name"
    "$python" diffusion_train.py checkpoint="$teacher" checkpoint_path="$out/$name" lr=1e-3 eval_puzzles=64 "$@"
    [[ -f $out/$name/evaluation/metrics.json ]] ||
        "$python" evaluate.py checkpoint="$out/$name" output_dir="$out/$name/evaluation" \
            diffusion.puzzles="$puzzles" diffusion.steps="$sampling"
}

updates="max_steps=$steps global_batch_size=$batch"
cycles="max_steps=$half global_batch_size=$quarter harvest.lanes_per_row=4"
# S0's literal heads as written: the unshifted schedule, AdamW, and no rows from beside the teacher's path.
literal="noise.shift=1 optim=adamw"

# shellcheck disable=SC2086 # options are words
{
    run regression "[1]" diffusion=d916_regression noise.shift=4 $updates
    run d916 "[1,4]" diffusion=diffusion_916 noise.shift=4 $updates regression_checkpoint="$out/regression"
    run d916_on_path "[1]" diffusion=diffusion_916 noise.shift=4 $updates harvest.perturbation=0
    run d916_v "[1,4]" diffusion=d916_v noise.shift=4 $updates
    run d916_seed "[1,10]" diffusion=d916_seed_eps $literal $updates harvest.perturbation=0
    run d9160 "[1,4]" diffusion=diffusion_9160 noise.shift=4 $cycles
    run d9160_seed "[1,4]" diffusion=d9160_seed_eps $literal $cycles
    run jump "[1,4]" diffusion=d9160_jump noise.shift=4 $cycles harvest.jump_to=4
}
