#!/usr/bin/env bash
# Trains the diffusion heads that docs/diffusion.md compares on one teacher, one after the other, and evaluates each:
#
#   bash scripts/compare_heads.sh runs/quickstart-sudoku runs/heads
#
# A head that is finished is left alone, so the same command goes on where it was stopped. STEPS and BATCH set the
# updates of a head for single updates and the rows of each, CYCLE_STEPS and CYCLE_BATCH those of a head for whole
# H-cycles, whose rows are many times as long; OPTIONS and EVALUATE are more options of diffusion_train.py and of
# evaluate.py; PUZZLES, the held-out puzzles of an evaluation. HEADS names some of the heads.
set -euo pipefail
teacher="$1" out="$2"
steps="${STEPS:-3000}" batch="${BATCH:-384}" puzzles="${PUZZLES:-1000}"
cycle_steps="${CYCLE_STEPS:-$((steps / 2))}" cycle_batch="${CYCLE_BATCH:-$((batch / 4))}"
python="${PYTHON:-python}"

run() { # name, sampling steps, options of diffusion_train.py
    local name="$1" sampling="$2"
    shift 2
    [[ " ${HEADS:-$name} " == *" $name "* ]] || return 0
    echo "== $name"
    "$python" diffusion_train.py checkpoint="$teacher" checkpoint_path="$out/$name" lr=1e-3 eval_puzzles=64 "$@" ${OPTIONS:-}
    [[ -f $out/$name/evaluation/metrics.json ]] ||
        "$python" evaluate.py checkpoint="$out/$name" output_dir="$out/$name/evaluation" \
            diffusion.puzzles="$puzzles" diffusion.steps="$sampling" ${EVALUATE:-}
}

updates="max_steps=$steps global_batch_size=$batch"
cycles="max_steps=$cycle_steps global_batch_size=$cycle_batch harvest.lanes_per_row=4"
# With and without evaluations that improve on each other, from estimates that less noise does not hide.
refining="diffusion.own_estimates=true noise.shift=2" plain="diffusion.own_estimates=false noise.shift=4"
# S0's literal heads as written: the unshifted schedule, AdamW, and no rows but the teacher's.
literal="noise.shift=1 optim=adamw"

# shellcheck disable=SC2086 # options are words
{
    run regression "[1]" diffusion=d916_regression noise.shift=4 $updates
    [[ ! -d $out/regression/checkpoints ]] || baseline="regression_checkpoint=$out/regression"
    run d916 "[1,4]" diffusion=diffusion_916 noise.shift=4 $updates ${baseline:-}
    run d916_on_path "[1]" diffusion=diffusion_916 noise.shift=4 $updates harvest.own_path=0
    run d916_v "[1,4]" diffusion=d916_v noise.shift=4 $updates
    run d916_seed "[1,10]" diffusion=d916_seed_eps $literal $updates harvest.own_path=0
    run d9160 "[1,4]" diffusion=diffusion_9160 $plain $cycles
    run d9160_deep "[1,4]" diffusion=diffusion_9160 diffusion.num_layers=12 $refining $cycles
    run d9160_looped "[1,4]" diffusion=d9160_looped $plain $cycles
    run d9160_seed "[1,4]" diffusion=d9160_seed_eps $literal $cycles
    run jump "[1,4]" diffusion=d9160_jump $refining $cycles harvest.jump_to=4
}
