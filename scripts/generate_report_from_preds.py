"""Report on captured predictions: a table of the puzzles, charts of how they were solved, and a page with both.

python evaluate.py checkpoint=runs/quickstart-sudoku capture.depth=h_cycle output_dir=runs/quickstart-sudoku/seen
python -m scripts.generate_report_from_preds runs/quickstart-sudoku/seen report
python -m scripts.generate_report_from_preds runs/quickstart-sudoku/seen report --replay 100

The replay shows rows that were not solved, at most half of N, and others, each evenly spaced. For Sudoku, mazes and
ARC, of which scripts.analyze_trm_arc_results makes the table by task.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.common import InputError, check_folder
from training.cli import run_cli, script_parser
from trajectories.measures import Course, answers
from trajectories.replay import write_replay
from trajectories.report import chosen_rows, figure_text, write_report
from trajectories.solve import solves
from trajectories.store import Capture, open_capture
from trajectories.tasks import Tasks


def main(argv: list[str]) -> None:
    parser = script_parser("generate_report_from_preds", __doc__)
    parser.add_argument("preds", type=Path, help="folder of an evaluation with captured trajectories")
    parser.add_argument("out", type=Path, help="folder for puzzles.csv, report.html and figures/")
    parser.add_argument("--data-root", type=Path, help="the data set's folder, where it was moved (ARC only)")
    parser.add_argument("--start", type=int, default=0, help="leave out so many of the rows (default 0)")
    parser.add_argument("--max", type=int, help="report on so many rows (default: all)")
    parser.add_argument("--replay", type=int, default=0, metavar="N", help="also replay.html of N of them")
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
    positions = chosen_rows(capture, arguments.start, arguments.max)
    for name, value in answers(Course.of(capture, positions)).items():
        print(f"{name:<60} {figure_text(value)}")
    print(page)
    if arguments.replay:
        rows = capture.row_index[worth_watching(capture, positions, arguments.replay)].tolist()
        tasks = Tasks.of(capture, arguments.data_root)
        print(write_replay(solves(capture, rows), arguments.out / "replay.html", tasks))


def worth_watching(capture: Capture, positions: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most `count` of the positions: evenly spaced ones that were not solved, at most half, and others."""
    solved = Course.of(capture, positions).solved[:, -1]
    failed, fine = positions[~solved], positions[solved]
    failures = min(len(failed), max(count // 2, count - len(fine)))
    return np.sort(np.concatenate([_evenly(failed, failures), _evenly(fine, min(len(fine), count - failures))]))


def _evenly(positions: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return positions[np.linspace(0, len(positions) - 1, count).astype(np.int64)]


if __name__ == "__main__":
    sys.exit(run_cli(main, sys.argv[1:]))
