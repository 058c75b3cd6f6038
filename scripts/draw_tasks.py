"""Draw ARC tasks with the answers that an evaluation gave to them.

python -m scripts.draw_tasks runs/quickstart-arc/final pictures data/arc-small
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from datasets.common import InputError, check_folder, load_test_puzzles, read_json
from evaluators.render import draw_arc_task
from training.cli import run_cli


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.draw_tasks", description="Draw ARC tasks and answers.")
    parser.add_argument("evaluation", type=Path, help="folder of an evaluation's files, with attempts.json")
    parser.add_argument("out", type=Path, help="folder for the pictures, one TASK.png each")
    parser.add_argument("data", type=Path, help="the data set's folder")
    parser.add_argument("--count", type=int, default=6, help="draw so many, solved ones first (default 6)")
    arguments = parser.parse_args(argv)
    check_folder(arguments.out, str(arguments.out))
    tasks = load_test_puzzles(arguments.data)
    attempts = read_json(arguments.evaluation / "attempts.json")
    unknown = sorted(set(attempts) - set(tasks))
    if unknown:
        raise InputError(f"{arguments.data} has no task {unknown[0]}, which {arguments.evaluation} answers")

    def solved(name: str) -> float:
        return sum(any(answer["correct"] for answer in answers) for answers in attempts[name]) / len(attempts[name])

    chosen = sorted(attempts, key=lambda name: (-solved(name), name))[: arguments.count]
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        print(draw_arc_task(tasks[name], attempts[name], arguments.out / f"{name}.png"))


if __name__ == "__main__":
    sys.exit(run_cli(main, sys.argv[1:]))
