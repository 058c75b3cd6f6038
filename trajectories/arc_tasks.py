"""What an ARC evaluation answered, task by task: from its attempts, from a submission, or from captured predictions.

Usage: ``results = read_results(Path("runs/a/final"), Path("data/arc1")); results.table()``
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.common import ARC_COLOURS, InputError, load_test_puzzles, read_json
from evaluators import build_evaluators
from evaluators.common import wilson_interval
from training.cli import warn
from training.recount import COUNTED, recount
from trajectories.store import HEADER, Capture
from trajectories.tasks import data_folders

ATTEMPTS_FILE = "attempts.json"

Task = dict[str, list[dict[str, Any]]]
Attempts = list[list[dict[str, Any]]]  # for each test pair {"grid", "votes", "correct"}, best first


@dataclass(frozen=True)
class ArcResults:
    """`tasks` as in test_puzzles.json; `attempts` of those that were answered, as in attempts.json, votes None where a
    submission does not tell them."""

    tasks: dict[str, Task]
    attempts: dict[str, Attempts]

    @property
    def scored(self) -> list[str]:
        """The tasks whose every solution is known, answered or not."""
        return [name for name, task in self.tasks.items() if all("output" in pair for pair in task["test"])]

    def score(self, name: str, k: int) -> float:
        """Share of a task's test pairs that one of the first `k` answers solves."""
        pairs = self.attempts.get(name, [])
        right = sum(any(answer["correct"] for answer in answers[:k]) for answers in pairs)
        return right / len(self.tasks[name]["test"])

    def summary(self) -> dict[str, float]:
        """pass@1 and pass@2 with their 95 % intervals over tasks, and how many were scored and answered."""
        scored = self.scored
        figures: dict[str, float] = {"tasks": len(scored), "tasks_answered": sum(n in self.attempts for n in scored)}
        for k in (1, 2):
            total = sum(self.score(name, k) for name in scored)
            low, high = wilson_interval(total, len(scored))
            figures |= {f"pass@{k}": total / max(1, len(scored)), f"pass@{k}_low": low, f"pass@{k}_high": high}
        return figures

    def table(self) -> list[dict[str, Any]]:
        """A row for each task, the solved ones first."""
        rows = []
        for name in sorted(self.tasks, key=lambda name: (-self.score(name, 2), -self.score(name, 1), name)):
            answers = [answer for pair in self.attempts.get(name, []) for answer in pair]
            votes = [answer["votes"] for answer in answers if answer["votes"] is not None]
            known = name in self.scored
            rows.append(
                {
                    "task": name,
                    "demonstrations": len(self.tasks[name]["train"]),
                    "test_pairs": len(self.tasks[name]["test"]),
                    "answers": len(answers),
                    "votes": sum(votes) if votes else "",
                    "pass@1": self.score(name, 1) if known else "",
                    "pass@2": self.score(name, 2) if known else "",
                }
            )
        return rows

    def table_csv(self) -> str:
        text, rows = io.StringIO(), self.table()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def examples(self, count: int) -> dict[str, list[str]]:
        """At most `count` tasks each that were solved in two attempts, and that were answered but not solved."""
        answered = [name for name in self.scored if self.attempts.get(name)]
        solved = sorted((name for name in answered if self.score(name, 2) == 1), key=lambda n: (-self.score(n, 1), n))
        rest = sorted((name for name in answered if self.score(name, 2) < 1), key=lambda n: (-self.score(n, 2), n))
        return {"solved": solved[:count], "not solved": rest[:count]}


def read_results(results: Path, data_root: Path, task_names: Collection[str] | None = None) -> ArcResults:
    """From an evaluation's folder, its attempts.json or a submission.json, on the data set in `data_root`, or on those
    of its tasks that are in `task_names`.

    Raises `InputError` where the files are missing, or answer tasks or test pairs that the data set does not have, or
    no task's solution is known.
    """
    tasks = load_test_puzzles(data_root)
    path = results / ATTEMPTS_FILE if results.is_dir() else results
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} must map tasks to answers, as attempts.json and submission.json do")
    attempts = {}
    for name, pairs in content.items():
        if name not in tasks:
            raise InputError(f"{data_root} has no task {name}, which {path} answers: name the data set of the results")
        if not isinstance(pairs, list) or len(pairs) != len(tasks[name]["test"]):
            raise InputError(f"{path}: task {name} needs a list of {len(tasks[name]['test'])} test pairs")
        attempts[name] = [
            _answers(pair, test.get("output"), f"{path}: task {name}")
            for pair, test in zip(pairs, tasks[name]["test"], strict=True)
        ]
    asked = {n: task for n, task in tasks.items() if task["test"] and (task_names is None or n in task_names)}
    found = ArcResults(asked, attempts)
    if not found.scored:
        raise InputError(
            f"{data_root} has the solutions of no task, so {path} cannot be scored: name a data set that does"
        )
    return found


def recounted(capture: Capture, folder: Path, data_root: Path | None) -> ArcResults:
    """Of captured predictions: the evaluator votes again and writes its attempts and its submission into `folder`.

    Raises `InputError` for other puzzles than ARC's and for a capture of some of the rows, whose votes are too few.
    """
    header = capture.header
    if header.kind != "arc":
        raise InputError(
            f"{capture.folder} holds {header.kind} puzzles: scripts.generate_report_from_preds reports on them"
        )
    sources = data_folders(header, data_root)
    if len(sources) > 1:
        raise InputError(f"{capture.folder} was captured on {len(sources)} data sets: evaluate one at a time")
    if not capture.complete:
        captured = f"{len(capture)} of the test split's {header.dataset_rows} rows"
        raise InputError(
            f"{capture.folder} has {captured}, too few to vote with: capture all, or name the evaluation's folder"
        )
    specs = [spec for spec in header.evaluators if spec["name"] == "arc@ARC"] or [{"name": "arc@ARC"}]
    if any(spec.get("pool_evaluations") for spec in specs):
        warn(f"the votes of {capture.folder} alone are counted, not those that its run pooled with them")
    recount(capture.chunks(COUNTED), header.max_steps, build_evaluators(specs, sources), folder)
    return read_results(folder, sources[0].path, sources[0].task_names)


def is_capture(path: Path) -> bool:
    return (path / HEADER).is_file()


def _answers(pair: Any, solution: Any, where: str) -> list[dict[str, Any]]:
    """Of one test pair: attempts of a submission by number, or a list of them with their votes."""
    if isinstance(pair, dict):
        if not pair or not all(re.fullmatch(r"attempt_[1-9]\d*", key) for key in pair):
            raise InputError(f"{where}: a test pair needs attempt_1, attempt_2 and so on, and nothing else")
        pair = [{"grid": pair[key], "votes": None} for key in sorted(pair, key=_attempt_number)]
    if not isinstance(pair, list) or not all(isinstance(answer, dict) and "grid" in answer for answer in pair):
        raise InputError(f"{where}: expected attempts with a grid of colours each; see attempts.json, submission.json")
    return [
        {
            "grid": _checked_grid(answer["grid"], where),
            "votes": _checked_votes(answer.get("votes"), where),
            "correct": None if solution is None else answer["grid"] == solution,
        }
        for answer in pair
    ]


def _attempt_number(key: str) -> int:
    return int(key.removeprefix("attempt_"))


def _checked_grid(grid: Any, where: str) -> list[list[int]]:
    rows: Sequence[Any] = grid if isinstance(grid, list) else []
    if not rows or not all(
        isinstance(row, list) and row and len(row) == len(rows[0]) and all(map(_is_colour, row)) for row in rows
    ):
        raise InputError(f"{where}: expected attempts with a grid of colours each, equal rows of whole numbers 0 to 9")
    return grid


def _is_colour(cell: Any) -> bool:
    return type(cell) is int and 0 <= cell < ARC_COLOURS  # neither 1.0 nor true, which equal 1


def _checked_votes(votes: Any, where: str) -> int | None:
    if votes is not None and (type(votes) is not int or votes < 0):
        raise InputError(f"{where}: votes={votes!r} is no number of votes")
    return votes


def summary_json(figures: dict[str, float]) -> str:
    return json.dumps(figures, indent=2)
