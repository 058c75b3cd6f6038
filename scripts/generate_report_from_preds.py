"""Report on captured predictions: a table of the puzzles, charts of how they were solved, and a page with both.

python evaluate.py checkpoint=runs/quickstart-sudoku capture.depth=h_cycle output_dir=runs/quickstart-sudoku/seen
python -m scripts.generate_report_from_preds runs/quickstart-sudoku/seen report
python -m scripts.generate_report_from_preds runs/quickstart-sudoku/seen report --replay 100

For Sudoku, mazes and ARC, of which scripts.analyze_trm_arc_results makes the table by task.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from datasets.common import InputError, check_folder
from training.cli import run_cli
from trajectories.replay import write_replay
from trajectories.report import write_report
from trajectories.solve import solves
from trajectories.store import open_capture
from trajectories.tasks import Tasks


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.generate_report_from_preds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("preds", type=Path, help="folder of an evaluation with captured trajectories")
    parser.add_argument("out", type=Path, help="folder for puzzles.csv, report.html and figures/")
    parser.add_argument("--data-root", type=Path, help="the data set's folder, where it was moved (ARC only)")
    parser.add_argument("--start", type=int, default=0, help="leave out so many of the rows (default 0)")
    parser.add_argument("--max", type=int, help="report on so many rows (default: all)")
    parser.add_argument("--replay", type=int, default=0, metavar="N", help="also replay.html of N rows, evenly spaced")
    arguments = parser.parse_args(argv)
    for name, least in (("start", 0), ("max", 1), ("replay", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise InputError(f"--{name} {value} must be at least {least}")
    check_folder(arguments.out, str(arguments.out))
    capture = open_capture(arguments.preds)
    page = write_report(
        capture, arguments.out, data_root=arguments.data_root, start=arguments.start, most=arguments.max
    )
    print(page)
    if arguments.replay:
        chosen = np.linspace(0, len(capture) - 1, min(arguments.replay, len(capture))).astype(int)
        rows = capture.row_index[np.unique(chosen)].tolist()
        tasks = Tasks.of(capture, arguments.data_root)
        print(write_replay(solves(capture, rows), arguments.out / "replay.html", tasks))


if __name__ == "__main__":
    sys.exit(run_cli(main, sys.argv[1:]))
