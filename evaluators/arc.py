"""ARC: augmented predictions vote for answers, the most voted are submitted and scored (pass@K).

Every row undoes its augmentation and votes, under (task, test input), for the grid it predicts. Answers rank
by number of votes, then by mean halting confidence sigmoid(q_halt). A task scores the share of its test pairs
whose solution is among the first K answers; pass@K is the mean over tasks, as in the HRM and TRM papers. A
prediction without a single cell is no answer and casts no vote.

Usage: ARC("data/arc1", metadata).result(Path("runs/a")) after update_batch; writes submission.json, tasks.csv
and attempts.json (the submitted answers with their votes).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from datasets.common import (
    ARC_COLOURS,
    InputError,
    PuzzleDatasetMetadata,
    load_identifiers,
    load_test_puzzles,
)
from evaluators.arc_names import read_names
from evaluators.arc_report import ScoredPair, ScoredTask, attempts_json, submission_json, tasks_csv
from evaluators.arc_rows import find_corners, grid_keys, grid_to_key, is_empty
from evaluators.common import Gather, single_process, wilson_interval, write_text
from evaluators.voting import Votes, as_fixed_point

NO_TASK = -1


@dataclass
class _Collected:
    """What one rank knows: its votes and how many rows it saw of the evaluated tasks."""

    votes: Votes = field(default_factory=Votes)
    rows: int = 0
    unmatched_rows: int = 0
    empty_predictions: int = 0

    @staticmethod
    def merged(parts: Sequence[_Collected]) -> _Collected:
        return _Collected(
            Votes.merged(part.votes for part in parts),
            sum(part.rows for part in parts),
            sum(part.unmatched_rows for part in parts),
            sum(part.empty_predictions for part in parts),
        )


class ARC:
    """Evaluator of ARC data sets (see the module's docstring for what it measures).

    Args:
        data_path: the data set's folder, with identifiers.json and test_puzzles.json.
        eval_metadata: metadata of the evaluated split; its seq_len is the square of the grid side.
        id_offset: added by the loader to this data set's identifiers (0 stays the blank one).
        task_names: evaluate only these tasks; None means all those of test_puzzles.json.
        submission_K: answers submitted per test pair.
        pass_Ks: the K of the pass@K figures.
        pool_evaluations: keep the votes of earlier evaluations, which makes pass@K that of an ensemble of
            checkpoints. Off by default.

    Raises:
        InputError: bad files or arguments, or no task left to evaluate.
    """

    required_outputs = frozenset({"preds", "q_halt_logits"})

    def __init__(
        self,
        data_path: str | Path,
        eval_metadata: PuzzleDatasetMetadata,
        *,
        id_offset: int = 0,
        task_names: Collection[str] | None = None,
        submission_K: int = 2,
        pass_Ks: Sequence[int] = (1, 2, 5, 10, 100, 1000),
        pool_evaluations: bool = False,
    ) -> None:
        if submission_K < 1:
            raise InputError(f"submission_K={submission_K} must be at least 1")
        if not pass_Ks or min(pass_Ks) < 1:
            raise InputError(f"pass_Ks={list(pass_Ks)} must be a non-empty list of numbers from 1 up")
        self._side = math.isqrt(eval_metadata.seq_len)
        if self._side**2 != eval_metadata.seq_len:
            raise InputError(
                f"{data_path}: seq_len={eval_metadata.seq_len} is not a square, so this is no ARC data set"
            )
        self._data_path = Path(data_path)
        self._id_offset = id_offset
        self._submission_K = submission_K
        self._pass_Ks = tuple(pass_Ks)
        self._pool_evaluations = pool_evaluations
        self._collected = _Collected()
        self._read_tasks(task_names)
        self._names = read_names(load_identifiers(self._data_path), self._data_path)
        position = {name: index for index, name in enumerate(self._tasks)}
        self._task_of_id = np.array([position.get(base, NO_TASK) for base in self._names.base], np.int64)
        self._check_identifiers(eval_metadata.num_puzzle_identifiers)

    def _read_tasks(self, task_names: Collection[str] | None) -> None:
        """Per task its test pairs as (question, solution key); a question is a distinct input of a task."""
        path = self._data_path / "test_puzzles.json"
        self._tasks: dict[str, list[tuple[int, bytes | None]]] = {}
        self._questions: dict[tuple[int, bytes], int] = {}
        wanted = None if task_names is None else frozenset(task_names)
        for name, task in load_test_puzzles(self._data_path).items():
            if (wanted is not None and name not in wanted) or not task["test"]:
                continue
            pairs: list[tuple[int, bytes | None]] = []
            for index, pair in enumerate(task["test"]):
                where = f"{path}: task {name}, test pair {index}"
                identity = len(self._tasks), _checked_key(pair["input"], f"{where}, input", self._side)
                question = self._questions.setdefault(identity, len(self._questions))
                output = pair.get("output")
                solution = None if output is None else _checked_key(output, f"{where}, output", self._side)
                pairs.append((question, solution))
            self._tasks[name] = pairs
        if not self._tasks:
            restriction = "" if wanted is None else f" among the {len(wanted)} tasks asked for"
            raise InputError(f"{path} has no task with test pairs{restriction}; rebuild it or name other tasks")

    def _check_identifiers(self, expected: int) -> None:
        path = self._data_path / "identifiers.json"
        if len(self._names) != expected:
            raise InputError(
                f"{path} has {len(self._names)} names but num_puzzle_identifiers is {expected}; rebuild the dataset"
            )
        if (self._task_of_id == NO_TASK).all():
            raise InputError(
                f"{path}: no name belongs to any of the {len(self._tasks)} tasks of test_puzzles.json; "
                "rebuild the dataset"
            )

    def begin_eval(self) -> None:
        """Forget all votes, unless evaluations are pooled."""
        if not self._pool_evaluations:
            self._collected = _Collected()

    def update_batch(self, batch: dict[str, np.ndarray], preds: dict[str, np.ndarray]) -> None:
        """Let the rows of the evaluated tasks vote; those of other tasks and data sets are passed over."""
        identifiers = batch["puzzle_identifiers"].astype(np.int64) - self._id_offset
        known = (identifiers > 0) & (identifiers < len(self._names))
        tasks = np.where(known, self._task_of_id[np.where(known, identifiers, 0)], NO_TASK)
        rows = np.flatnonzero(tasks != NO_TASK)
        if len(rows) == 0:
            return
        identifiers, tasks = identifiers[rows], tasks[rows]
        confidences = _confidences(preds["q_halt_logits"][rows], batch["row_index"][rows])
        inputs, predictions = batch["inputs"][rows], preds["preds"][rows]
        corners = find_corners(inputs, self._side)
        augmentation = self._names.dihedral[identifiers], self._names.inverse_colours[identifiers]
        asked = zip(tasks.tolist(), grid_keys(inputs, corners, self._side, *augmentation), strict=True)
        answers = grid_keys(predictions, corners, self._side, *augmentation)
        self._collect([self._questions.get(pair) for pair in asked], answers, as_fixed_point(confidences))

    def _collect(self, questions: list[int | None], answers: list[bytes], confidences: list[int]) -> None:
        collected = self._collected
        collected.rows += len(questions)
        collected.unmatched_rows += questions.count(None)
        collected.empty_predictions += sum(map(is_empty, answers))
        for question, answer, confidence in zip(questions, answers, confidences, strict=True):
            if question is not None and not is_empty(answer):
                collected.votes.add(question, answer, confidence)

    def result(self, save_dir: Path | None, gather: Gather = single_process) -> dict[str, float] | None:
        """Figures on rank 0, None elsewhere.

        ARC/pass@K with ARC/pass@K_low and _high (95 % Wilson interval over tasks), ARC/tasks scored,
        ARC/tasks_without_solution, ARC/test_pairs, ARC/test_pairs_without_votes, ARC/rows, ARC/unmatched_rows
        (their input is no test input of their task), ARC/empty_predictions. Without any solution there is no
        pass@K. Raises `InputError` if no row at all belonged to a test pair.
        """
        parts = gather(self._collected)
        if parts is None:
            return None
        collected = _Collected.merged(cast(list[_Collected], parts))
        self._refuse_strangers(collected)
        ranked = [collected.votes.ranked(question) for question in range(len(self._questions))]
        tasks = [
            ScoredTask(name, [ScoredPair(ranked[question], solution) for question, solution in pairs])
            for name, pairs in self._tasks.items()
        ]
        if save_dir is not None:
            write_text(save_dir / "submission.json", submission_json(tasks, self._submission_K))
            write_text(save_dir / "attempts.json", attempts_json(tasks, self._submission_K))
            write_text(save_dir / "tasks.csv", tasks_csv(tasks, self._pass_Ks))
        return self._figures(tasks, collected)

    def _refuse_strangers(self, collected: _Collected) -> None:
        if collected.rows == 0:
            raise InputError(
                f"{self._data_path}: no evaluated row belongs to any of its {len(self._tasks)} test tasks: "
                "the rows' puzzle identifiers are not those of its identifiers.json "
                f"(offset {self._id_offset}); evaluate the test split of this data set"
            )
        if collected.rows == collected.unmatched_rows:
            raise InputError(
                f"{self._data_path}: none of {collected.rows} evaluated rows shows a test input of its task: "
                "identifiers.json or test_puzzles.json belong to other arrays, or this is no test split; "
                "evaluate the test split or rebuild the dataset"
            )

    def _figures(self, tasks: list[ScoredTask], collected: _Collected) -> dict[str, float]:
        scored = [task for task in tasks if task.has_solutions]
        figures: dict[str, float] = {}
        for k in self._pass_Ks if scored else ():
            total = math.fsum(task.score(k) for task in scored)
            figures[f"ARC/pass@{k}"] = total / len(scored)
            low, high = wilson_interval(total, len(scored))
            figures[f"ARC/pass@{k}_low"], figures[f"ARC/pass@{k}_high"] = low, high
        pairs = [pair for task in tasks for pair in task.pairs]
        return figures | {
            "ARC/tasks": float(len(scored)),
            "ARC/tasks_without_solution": float(len(tasks) - len(scored)),
            "ARC/test_pairs": float(len(pairs)),
            "ARC/test_pairs_without_votes": float(sum(not pair.candidates for pair in pairs)),
            "ARC/rows": float(collected.rows),
            "ARC/unmatched_rows": float(collected.unmatched_rows),
            "ARC/empty_predictions": float(collected.empty_predictions),
        }


def _confidences(q_halt_logits: np.ndarray, row_index: np.ndarray) -> np.ndarray:
    """sigmoid of [n] logits in float64; `InputError` on NaN, which only a diverged model gives."""
    logits = np.asarray(q_halt_logits, np.float64)
    if np.isnan(logits).any():
        row = int(row_index[np.argmax(np.isnan(logits))])
        raise InputError(
            f"q_halt_logits of row {row} is NaN, so the model has diverged; evaluate an earlier checkpoint"
        )
    # exp of a non-positive number only, so that it cannot overflow.
    decay = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1.0, decay) / (1.0 + decay)


def _checked_key(grid: Any, where: str, side: int) -> bytes:
    """Key of a grid from a JSON file; `InputError` if it is no rectangle of colours 0..9 within the side."""
    try:
        array = np.asarray(grid)
    except ValueError:
        array = np.empty(0)
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "iu":
        raise InputError(f"{where}: expected a rectangular list of rows of colours 0..9; correct the file")
    if array.min() < 0 or array.max() >= ARC_COLOURS:
        raise InputError(f"{where}: colours {array.min()}..{array.max()}, expected 0..9; correct the file")
    if max(array.shape) > side:
        size = f"{array.shape[0]}x{array.shape[1]}"
        raise InputError(f"{where}: {size} cells do not fit rows of {side}x{side}; use a larger grid size")
    return grid_to_key(grid)
