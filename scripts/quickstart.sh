#!/usr/bin/env bash
# From a fresh clone to trained models: sets up .venv, builds two small data sets, trains a Tiny Recursive Model on each
# and a diffusion head on one of those, evaluates and draws what happened. 7 to 13 minutes on two CPU cores; run it
# again to see only what is left.
set -euo pipefail
cd "$(dirname "$0")/.."

bash scripts/setup_env.sh diffusion
python="$PWD/.venv/bin/python"
seconds() { echo "  ($1: $((SECONDS - started)) s)"; }
started=$SECONDS

echo "== 1/3 Sudoku, 6x6: 1000 generated puzzles to train on, 1000 others to solve"
[[ -d data/sudoku-6x6 ]] ||
    "$python" -m datasets.build_sudoku_dataset --output-dir data/sudoku-6x6 --size 6 --clues 12
"$python" pretrain.py experiment=quickstart
"$python" evaluate.py checkpoint=runs/quickstart-sudoku output_dir=runs/quickstart-sudoku/final capture.depth=eval
"$python" -m scripts.generate_report_from_preds runs/quickstart-sudoku/final runs/quickstart-sudoku/report --replay 100
"$python" -m scripts.extract_single_puzzle_trajectory runs/quickstart-sudoku runs/quickstart-sudoku/solve.png \
    runs/quickstart-sudoku/solve.gif --depth h_cycle
seconds Sudoku
started=$SECONDS

echo "== 2/3 ARC-AGI-1: twelve real training tasks on grids of at most 6x6, their test pairs held out"
[[ -d data/arc-small ]] ||
    "$python" -m datasets.build_arc_dataset --output-dir data/arc-small \
        --subsets training --test-set-name training --grid-size 6 --max-tasks 12 --num-aug 7
"$python" pretrain.py experiment=arc_quickstart
"$python" evaluate.py checkpoint=runs/quickstart-arc output_dir=runs/quickstart-arc/final
"$python" -m scripts.analyze_trm_arc_results runs/quickstart-arc/final runs/quickstart-arc/tasks \
    --data-root data/arc-small
seconds ARC
started=$SECONDS

echo "== 3/3 A diffusion head: learns from the Sudoku model's latents to stand in for its recursion"
"$python" diffusion_train.py experiment=diffusion_quickstart
"$python" evaluate.py checkpoint=runs/quickstart-diffusion output_dir=runs/quickstart-diffusion/final
seconds diffusion

cat <<'TEXT'

What to look at:
  runs/quickstart-sudoku/report/replay.html   puzzles being solved, played in a browser
  runs/quickstart-sudoku/report/report.html   what became of all of them, and whether the model knew
  runs/quickstart-sudoku/solve.gif, .png      one puzzle being solved, step by step
  runs/quickstart-sudoku/curves.png           loss and accuracy over training
  runs/quickstart-sudoku/final/metrics.json   the figures above, with what they were measured on
  runs/quickstart-diffusion/final/            how well the head follows its teacher, with pictures
  runs/quickstart-arc/tasks/tasks.html        ARC tasks with the model's attempts
  runs/quickstart-arc/final/submission.json   in Kaggle's format
TEXT
