"""One evaluation: a model, a data set, evaluators in; figures and files out. Used by training and by `evaluate.py`.

Evaluators get finished rows and never see the model. Figures are named ``{set}/{figure}`` and ``{evaluator}/{figure}``
and are the same for one process and for many.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from datasets.common import InputError
from datasets.puzzle_dataset import PuzzleDataset
from models.losses import ACTLossHead
from training.distributed import Distributed
from training.files import written_aside
from training.recording import CaptureRequest, make_recorder
from training.rollout import UNIT, ActStatistics, Rows, in_units, rollout

METRICS_FILE = "metrics.json"  # the figures, and what they were measured on
STEPS_FILE = "act_steps.json"  # accuracy by ACT step, halting, calibration


class Evaluator(Protocol):
    """What `evaluators.common` promises, as far as it is used here."""

    required_outputs: frozenset[str]

    def begin_eval(self) -> None: ...
    def update_batch(self, batch: dict[str, NDArray], preds: dict[str, NDArray]) -> None: ...
    def result(self, save_dir: Path | None, gather: Any = ...) -> dict[str, float] | None: ...


def evaluate(
    model: ACTLossHead,
    dataset: PuzzleDataset,
    evaluators: Sequence[tuple[str, Evaluator]],
    *,
    dist: Distributed,
    batch_size: int,
    act_eval: str = "fixed",
    act_eval_confidence: float = 0.5,
    save_dir: Path | None = None,
    capture: CaptureRequest | None = None,
) -> dict[str, float] | None:
    """All figures on rank 0, None elsewhere; `batch_size` is global. Files go to `save_dir`.

    An evaluator's label, where it has one, goes before its figures' names and is the folder of its files. What is asked
    for in `capture` is recorded of every row on the way.

    Raises `InputError` where the batch cannot be shared out.
    """
    check_batch_size(batch_size, dist.world_size)
    keys: set[str] = set().union(*(evaluator.required_outputs for _, evaluator in evaluators))
    was_training = model.training
    model.eval()
    for _, evaluator in evaluators:
        evaluator.begin_eval()
    totals: dict[str, SetTotals] = {}
    for set_name, rows in _by_set(dataset, batch_size, dist):
        total = totals.setdefault(set_name, SetTotals(model.model.config.halt_max_steps))
        slots = batch_size // dist.world_size
        for finished in rollout(
            model,
            rows,
            slots=slots,
            device=dist.device,
            early=act_eval == "early",
            keys=keys,
            statistics=total.act,
            confidence=act_eval_confidence,
            recorder=make_recorder(capture, model, slots, set_name),
        ):
            total.add(finished)
            for _, evaluator in evaluators:
                evaluator.update_batch(finished, finished)
    model.train(was_training)

    merged = _merge(dist.gather_objects(totals))
    figures = collect_figures(merged, evaluators, save_dir if dist.is_main else None, dist.gather_objects)
    if save_dir is not None:
        save_dir.mkdir(parents=True, exist_ok=True)
        if dist.is_main:  # last, so that its presence says that the evaluation was completed
            steps = {name: total.act.as_json() for name, total in merged.items()}
            with written_aside(save_dir / STEPS_FILE) as aside:
                aside.write_text(json.dumps(steps, indent=2), encoding="utf-8")
    return figures if dist.is_main else None


def collect_figures(
    totals: dict[str, SetTotals],
    evaluators: Sequence[tuple[str, Evaluator]],
    save_dir: Path | None,
    gather: Callable[[object], list[Any] | None],
) -> dict[str, float]:
    """Every figure by its full name; on other ranks than the first, nothing. The evaluators write into `save_dir`."""
    figures = {f"{name}/{key}": value for name, total in totals.items() for key, value in total.figures().items()}
    for label, evaluator in evaluators:
        folder = None if save_dir is None else save_dir / label
        for key, value in (evaluator.result(folder, gather=gather) or {}).items():
            figures[f"{label}/{key}" if label else key] = value
    return figures


def evaluation_folder(run_dir: Path, step: int) -> Path:
    """Where the files of a run's evaluation after `step` go."""
    return run_dir / "eval" / f"step_{step}"


def was_evaluated(run_dir: Path, step: int, last_file: str = STEPS_FILE) -> bool:
    """Whether an evaluation of `step` got to its last file, perhaps before the run was interrupted."""
    return (evaluation_folder(run_dir, step) / last_file).exists()


def check_batch_size(batch_size: int, world_size: int) -> None:
    """`InputError` where an evaluation's batch cannot be shared out; entry points ask before they do anything else."""
    if batch_size % world_size:
        raise InputError(
            f"eval_batch_size={batch_size} cannot be shared out over {world_size} processes; use a multiple"
        )


class SetTotals:
    """Sums of one set on one rank."""

    def __init__(self, max_steps: int):
        self.act = ActStatistics(max_steps)
        self.rows = 0  # those without labels too
        self.steps = 0
        self.loss = 0  # in UNIT

    def add(self, finished: Rows) -> None:
        self.rows += len(finished["steps"])
        self.steps += int(finished["steps"].sum())
        self.loss += int(in_units(finished["lm_loss"]).sum())

    def merge(self, other: SetTotals) -> None:
        self.act.merge(other.act)
        self.rows += other.rows
        self.steps += other.steps
        self.loss += other.loss

    def figures(self) -> dict[str, float]:
        labelled = self.act.rows
        if labelled == 0:
            return {"rows": 0, "steps": self.steps / self.rows}
        return {
            "rows": labelled,
            "accuracy": float(self.act.cell[-1]) * UNIT / labelled,
            "exact_accuracy": float(self.act.exact[-1]) * UNIT / labelled,
            "lm_loss": self.loss * UNIT / labelled,
            "steps": self.steps / self.rows,
            "q_halt_calibration_error": self.act.calibration_error,
        }


def _by_set(dataset: PuzzleDataset, batch_size: int, dist: Distributed) -> Iterator[tuple[str, Iterator[Rows]]]:
    """The sets of the data, each with an iterator over its real rows (padding dropped)."""
    batches = iter(dataset.test_batches(batch_size, dist.rank, dist.world_size))
    upcoming = next(batches, None)
    while upcoming is not None:
        current = upcoming[0]

        def rows(name: str = current) -> Iterator[Rows]:
            nonlocal upcoming
            while upcoming is not None and upcoming[0] == name:
                _, batch, row_index = upcoming
                real = row_index >= 0
                yield {key: value[real] for key, value in batch.items()} | {"row_index": row_index[real]}
                upcoming = next(batches, None)

        yield current, rows()


def _merge(gathered: list[dict[str, SetTotals]] | None) -> dict[str, SetTotals]:
    """The totals of all ranks by set; nothing on the ranks that were given nothing."""
    merged: dict[str, SetTotals] = {}
    for part in gathered or []:
        for name, total in part.items():
            if name in merged:
                merged[name].merge(total)
            else:
                merged[name] = total
    if gathered is not None and not any(total.act.rows for total in merged.values()):
        print("warning: no row of the evaluation data has labels: its answers are not scored", file=sys.stderr)
    return merged
