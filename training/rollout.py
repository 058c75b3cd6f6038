"""Runs a model over a data set: rows go into slots, stay there while they are being solved, and come out finished.

With ``act_eval="fixed"`` every row runs exactly `halt_max_steps`, as published; with ``"early"`` a row leaves as soon
as its halting head says so and the slot takes the next row.

    for finished in rollout(model, rows, slots=256, device=device, early=False, keys={"preds"}, statistics=statistics):
        evaluator.update_batch(finished, finished)
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.losses import IGNORE_LABEL_ID, ACTLossHead
from training.recording import Recorder

Rows = dict[str, NDArray]

CALIBRATION_BINS = 10

# Sums are kept as integers of this unit: exact, and so the same in any order and for any number of processes.
UNIT = 2.0**-32


@dataclass
class ActStatistics:
    """Sums over rows with labels, in `UNIT` unless they are counts.

    Those by step have one entry for each ACT step; the last is the answer given.

    `exact`, `cell`: solved rows and summed cell accuracy after each step, a finished row counting on with its answer.
    `halt_steps`: rows by the first step at which the halting head said "done"; entry 0 counts those that never did.
    `confidence`, `solved`, `binned`: sums by bin of the final halting probability.
    """

    max_steps: int
    rows: int = 0
    exact: NDArray[np.int64] = field(init=False)
    cell: NDArray[np.int64] = field(init=False)
    halt_steps: NDArray[np.int64] = field(init=False)
    confidence: NDArray[np.int64] = field(init=False)
    solved: NDArray[np.int64] = field(init=False)
    binned: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.exact, self.cell = np.zeros(self.max_steps, np.int64), np.zeros(self.max_steps, np.int64)
        self.halt_steps = np.zeros(self.max_steps + 1, np.int64)
        self.confidence, self.solved, self.binned = (np.zeros(CALIBRATION_BINS, np.int64) for _ in range(3))

    def add_step(self, step: NDArray, exact: NDArray, cell: NDArray, finished: NDArray) -> None:
        """Rows after `step` (from 1); the `finished` ones keep their result for all steps that they were spared."""
        for total, value in ((self.exact, in_units(exact)), (self.cell, in_units(cell))):
            np.add.at(total, step - 1, value)
            for row in np.flatnonzero(finished & (step < self.max_steps)):
                total[step[row] :] += value[row]

    def add_finished(self, exact: NDArray, q_halt_logits: NDArray, first_halt: NDArray) -> None:
        probability = 1 / (1 + np.exp(-q_halt_logits.astype(np.float64)))
        bins = np.minimum((probability * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
        np.add.at(self.confidence, bins, in_units(probability))
        np.add.at(self.solved, bins, in_units(exact))
        np.add.at(self.binned, bins, 1)
        np.add.at(self.halt_steps, first_halt, 1)
        self.rows += len(exact)

    def merge(self, other: ActStatistics) -> None:
        self.rows += other.rows
        for name in ("exact", "cell", "halt_steps", "confidence", "solved", "binned"):
            getattr(self, name).__iadd__(getattr(other, name))

    @property
    def calibration_error(self) -> float:
        """Expected calibration error of the halting probability, in [0, 1]."""
        return float(np.abs(self.confidence - self.solved).sum() * UNIT / max(1, self.rows))

    def as_json(self) -> dict[str, object]:
        per_row, per_bin = UNIT / max(1, self.rows), UNIT / np.maximum(1, self.binned)
        return {
            "rows": self.rows,
            "exact_accuracy_by_step": (self.exact * per_row).tolist(),
            "cell_accuracy_by_step": (self.cell * per_row).tolist(),
            "rows_by_first_halt_step": self.halt_steps.tolist(),
            "q_halt_calibration": {
                "rows": self.binned.tolist(),
                "mean_probability": (self.confidence * per_bin).tolist(),
                "solved": (self.solved * per_bin).tolist(),
                "expected_calibration_error": self.calibration_error,
            },
        }


def in_units(values: NDArray) -> NDArray[np.int64]:
    """Numbers rounded to multiples of `UNIT`, counted in them."""
    return np.rint(np.asarray(values, dtype=np.float64) / UNIT).astype(np.int64)


class _Queue:
    """Cuts a stream of batches into pieces of any size."""

    def __init__(self, rows: Iterator[Rows]):
        self._rows = rows
        self._rest: Rows | None = None

    def take(self, count: int) -> Rows | None:
        """The next `count` rows, fewer at the end of the stream, None after it."""
        parts: list[Rows] = []
        while count > 0 and (part := self._next_part(count)) is not None:
            parts.append(part)
            count -= len(part["row_index"])
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} if parts else None

    def _next_part(self, count: int) -> Rows | None:
        while self._rest is None or len(self._rest["row_index"]) == 0:
            self._rest = next(self._rows, None)
            if self._rest is None:
                return None
        part = {key: value[:count] for key, value in self._rest.items()}
        self._rest = {key: value[count:] for key, value in self._rest.items()}
        return part


class _Slots:
    """The rows being solved: the model's `batch`, and which row of the data set sits in which slot (-1: none)."""

    def __init__(self, rows: Iterator[Rows], slots: int, device: torch.device):
        self._queue, self._device = _Queue(rows), device
        self.row_index = np.full(slots, -1, dtype=np.int64)
        self.first_halt = np.zeros(slots, dtype=np.int64)
        self.batch: dict[str, Tensor] = {}
        self.refill(np.ones(slots, dtype=bool))

    def refill(self, free: NDArray[np.bool_]) -> None:
        """Put the next rows into the `free` slots; slots for which none is left lose their labels and their row."""
        where = np.flatnonzero(free)
        self.row_index[where], self.first_halt[where] = -1, 0
        fresh = self._queue.take(len(where))
        if fresh is not None:
            filled = where[: len(fresh["row_index"])]
            self.row_index[filled] = fresh.pop("row_index")
            for key, value in fresh.items():
                if key not in self.batch:
                    shape = (len(self.row_index), *value.shape[1:])
                    self.batch[key] = torch.zeros(shape, dtype=torch.int32, device=self._device)
                self.batch[key][self._on_device(filled)] = self._on_device(value.astype(np.int32))
        if self.batch:
            self.batch["labels"][self._on_device(np.flatnonzero(self.row_index < 0))] = IGNORE_LABEL_ID

    def _on_device(self, array: NDArray) -> Tensor:
        return torch.from_numpy(array).to(self._device)


@torch.no_grad()
def rollout(
    model: ACTLossHead,
    rows: Iterator[Rows],
    *,
    slots: int,
    device: torch.device,
    early: bool,
    keys: Collection[str],
    statistics: ActStatistics,
    confidence: float = 0.5,
    recorder: Recorder | None = None,
) -> Iterator[Rows]:
    """Yield finished rows: the arrays of `rows`, those outputs of the model named in `keys`, `steps` and `lm_loss`.

    With `early` a row finishes as soon as it wants to halt with a probability above `confidence`. A `recorder` of as
    many slots watches.

    `rows` yields batches of any size, numpy arrays with dimension 0 the row, `row_index` among them. The model must be
    in evaluation mode and run with the weights to be evaluated.
    """
    held = _Slots(rows, slots, device)
    if not held.batch:
        return
    latents = recorder is not None and recorder.latents
    carry = model.initial_carry(held.batch)
    while (held.row_index >= 0).any():
        carry, outputs = model.model(carry=carry, batch=held.batch, store_diffusion_trajectory=latents)
        outputs["preds"] = outputs["logits"].argmax(-1)
        wants = model.model.wants_to_halt(outputs).cpu().numpy()
        step = carry.steps.cpu().numpy().astype(np.int64)
        active = held.row_index >= 0
        held.first_halt = np.where(active & wants & (held.first_halt == 0), step, held.first_halt)
        leaves = wants & (torch.sigmoid(outputs["q_halt_logits"].float()).cpu().numpy() > confidence)
        finished = active & (carry.halted.cpu().numpy() | (leaves if early else False))

        if recorder is not None:
            recorder.add_step(held.row_index, step, active, outputs, wants)
        exact, cell, labelled = score_rows(outputs["preds"], held.batch["labels"])
        counted, done = active & labelled, finished & labelled
        statistics.add_step(step[counted], exact[counted], cell[counted], finished[counted])
        if finished.any():
            q_halt = outputs["q_halt_logits"].float().cpu().numpy()
            statistics.add_finished(exact[done], q_halt[done], held.first_halt[done])
            where = torch.from_numpy(np.flatnonzero(finished)).to(device)
            arrays = {key: value[where] for key, value in held.batch.items()}
            arrays |= {key: outputs[key][where].to(_storable(outputs[key].dtype)) for key in keys if key in outputs}
            arrays["lm_loss"] = _mean_loss(model, outputs["logits"][where], arrays["labels"])
            answers = {
                "row_index": held.row_index[finished],
                "steps": step[finished],
                **{key: value.cpu().numpy() for key, value in arrays.items()},
            }
            if recorder is not None:
                recorder.finish(finished, answers)
            held.refill(finished)
            yield answers
        carry.halted = torch.from_numpy(finished | ~active).to(device)


def score_rows(preds: Tensor, labels: Tensor) -> tuple[NDArray, NDArray, NDArray]:
    """By row: solved (0 or 1), share of right cells, and whether there are labels at all."""
    labelled = labels != IGNORE_LABEL_ID
    counts = labelled.sum(-1)
    correct = (labelled & (preds == labels)).sum(-1)
    exact, cell, has_labels = (
        value.cpu().numpy() for value in (correct == counts, correct / counts.clamp_min(1), counts > 0)
    )
    return exact.astype(np.float64), cell.astype(np.float64), has_labels


def _mean_loss(model: ACTLossHead, logits: Tensor, labels: Tensor) -> Tensor:
    return model.loss_fn(logits, labels).sum(-1) / (labels != IGNORE_LABEL_ID).sum(-1).clamp_min(1)


def _storable(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.is_floating_point else torch.int32
