"""What evaluated rows passed through on the way to their answers, slot by slot, until they are finished.

A recorder watches a rollout: it sees every ACT step of every slot and hands finished rows over with their trajectories.
At depth ``eval`` it keeps what the heads said after each ACT step; at ``h_cycle`` what they would have said after each
H-cycle too, and the latents z_H and z_L that each H-cycle ended with; at ``layer`` every z_L on the way.

    rollout(model, rows, slots=slots, ..., recorder=Recorder(model, slots, "eval", sink=writer.add))
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from datasets.common import InputError
from models.losses import ACTLossHead
from models.trajectory import Trajectory, check_recordable

Depth = Literal["eval", "h_cycle", "layer"]
Rows = dict[str, NDArray]

# Finished rows are handed over in pieces of this size, so that copies stay small however many finish together.
PIECE_BYTES = 16 * 2**20

# What is kept of a finished row, whatever else was asked for it: its last answer is that of the last step already.
OF_THE_ROW = ("row_index", "puzzle_identifiers", "inputs", "labels", "steps", "lm_loss")

# Outputs that are stored only where they are asked for by name: a vocabulary's worth of numbers a cell, and a number
# that means something with `no_ACT_continue=false` only.
OPTIONAL = ("logits", "q_continue_logits")


@dataclass(frozen=True)
class CaptureRequest:
    """What an evaluation is to record, and who takes it: ``sink(set_name, rows)``. Otherwise as in `Recorder`."""

    depth: Depth
    sink: Callable[[str, Rows], None]
    outputs: Collection[str] = ()
    rows: Collection[int] | None = None


class Recorder:
    """Trajectories of the rows in `slots` slots; all rows, or those whose index in the data set is in `rows`.

    `sink` is handed `OF_THE_ROW` of the finished rows, as `rollout` yields them, with what was recorded of them,
    `PIECE_BYTES` at a time. T is the number of ACT
    steps, H of H-cycles, M of L-cycles. After a row's last step its answer, its confidence and its halt logit are
    repeated up to T, so that every step has the answer that would have been given there.

    ``step_preds`` [n, T, seq_len] unsigned tokens; ``step_confidence`` [n, T, seq_len] float16, the probability of that
    token under the distribution that the model was trained with; ``step_q_halt_logits`` [n, T] float32;
    ``step_wants_to_halt`` [n, T] bool, what the halting head says; ``step_active`` [n, T] bool, whether the row was
    being solved in that step (always so in the first), ``step_halted`` whether it was done after it; ``step_logits``,
    ``step_q_continue_logits`` where `outputs` names them.
    From depth ``h_cycle`` on ``cycle_preds``, ``cycle_confidence`` and ``cycle_q_halt_logits``, with H after T, and
    ``z_H`` [n, T, H, latent_length, hidden_size] float32; ``z_L`` is alike, but at depth ``layer`` has M after H.
    """

    def __init__(
        self,
        model: ACTLossHead,
        slots: int,
        depth: Depth,
        sink: Callable[[Rows], None],
        outputs: Collection[str] = (),
        rows: Collection[int] | None = None,
    ):
        self.latents = depth != "eval"
        self._head, self._model, self._depth, self._sink = model, model.model, depth, sink
        self._outputs = [name for name in OPTIONAL if name in outputs]
        self._rows = None if rows is None else np.array(sorted(rows), np.int64)
        # Latents are large: no more room than for the rows that can be in the slots at once.
        count = slots if rows is None else min(slots, len(rows))
        layout = row_layout(model, depth, outputs)
        self._buffers = {name: np.zeros((count, *shape), dtype) for name, (shape, dtype) in layout.items()}
        self._buffer_of_slot = np.full(slots, -1, np.int64)
        self._free = list(range(count))[::-1]

    def add_step(
        self,
        row_index: NDArray[np.int64],
        step: NDArray[np.int64],
        active: NDArray[np.bool_],
        outputs: dict[str, Any],
        wants: NDArray[np.bool_],
    ) -> None:
        """One ACT step of all slots: those that are `active` did their step number `step` (from 1) on `row_index`."""
        slot = np.flatnonzero(active & self._wanted(row_index))
        if not len(slot):
            return
        for fresh in slot[self._buffer_of_slot[slot] < 0]:
            self._buffer_of_slot[fresh] = self._free.pop()
        at = self._buffer_of_slot[slot], step[slot] - 1
        where = torch.from_numpy(slot).to(outputs["logits"].device)
        self._buffers["step_wants_to_halt"][at] = wants[slot]
        self._put("step", at, outputs["preds"][where], outputs["logits"][where], outputs["q_halt_logits"][where])
        for name in self._outputs:
            self._buffers[f"step_{name}"][at] = _numbers(outputs[name][where])
        if self.latents:
            self._put_cycles(at, where, outputs["trajectory"])

    def finish(self, finished: NDArray[np.bool_], rows: Rows) -> None:
        """The `finished` slots [slots] hold `rows`, which are done: hand those that were recorded over."""
        kept = self._wanted(rows["row_index"])
        if not kept.any():
            return
        buffer_of_row = self._buffer_of_slot[np.flatnonzero(finished)]
        row_bytes = sum(array[0].nbytes for array in self._buffers.values())
        pieces = max(1, math.ceil(int(kept.sum()) * row_bytes / PIECE_BYTES))
        for piece in np.array_split(np.flatnonzero(kept), min(pieces, int(kept.sum()))):
            recorded = self._taken(buffer_of_row[piece], rows["steps"][piece])
            self._sink({name: rows[name][piece] for name in OF_THE_ROW} | recorded)
        self._buffer_of_slot[np.flatnonzero(finished)[kept]] = -1
        self._free += buffer_of_row[kept].tolist()

    def _taken(self, buffer: NDArray[np.int64], steps: NDArray) -> Rows:
        """What was recorded of rows that ran so many `steps` [n], out of the buffers [n] that they were in."""
        recorded = {name: array[buffer] for name, array in self._buffers.items()}
        most = self._model.config.halt_max_steps
        for row in np.flatnonzero(steps < most):
            for array in recorded.values():
                array[row, steps[row] :] = array[row, steps[row] - 1]
        number = np.arange(1, most + 1)
        recorded["step_active"] = number <= steps[:, None]
        recorded["step_halted"] = number >= steps[:, None]
        return recorded

    def _wanted(self, row_index: NDArray[np.int64]) -> NDArray[np.bool_]:
        return row_index >= 0 if self._rows is None else np.isin(row_index, self._rows)

    def _put(self, level: str, at: tuple[NDArray, ...], preds: Tensor, logits: Tensor, q_halt: Tensor) -> None:
        self._buffers[f"{level}_preds"][at] = preds.cpu().numpy()
        self._buffers[f"{level}_confidence"][at] = _numbers(self._head.confidence_fn(logits))
        self._buffers[f"{level}_q_halt_logits"][at] = _numbers(q_halt)

    def _put_cycles(self, at: tuple[NDArray, NDArray], where: Tensor, trajectory: Trajectory) -> None:
        inner = self._model.inner
        for h, cycle in enumerate(trajectory["all_h_cycles"]):
            here = (*at, np.full_like(at[0], h))
            z_H, z_L_list = cycle["z_H"][where], [z_L[where] for z_L in cycle["z_L_list"]]
            said = inner.read_out(inner.carry_class(z_H=z_H, z_L=z_L_list[-1]))
            self._put("cycle", here, said["logits"].argmax(-1), said["logits"], said["q_halt_logits"])
            self._buffers["z_H"][here] = _numbers(z_H)
            self._buffers["z_L"][here] = _numbers(torch.stack(z_L_list, 1) if self._depth == "layer" else z_L_list[-1])


def make_recorder(request: CaptureRequest | None, model: ACTLossHead, slots: int, set_name: str) -> Recorder | None:
    """The recorder of one set's rollout, where anything is to be recorded."""
    if request is None:
        return None
    sink = functools.partial(request.sink, set_name)
    return Recorder(model, slots, request.depth, sink, request.outputs, request.rows)


def row_layout(
    model: ACTLossHead, depth: Depth, outputs: Collection[str] = ()
) -> dict[str, tuple[tuple[int, ...], DTypeLike]]:
    """Shape and dtype of what is recorded of one row, by name (see `Recorder`).

    Raises `InputError` for an architecture that has no z_H and z_L, where those are asked for.
    """
    config = model.model.config
    steps, cells = config.halt_max_steps, config.seq_len
    layout: dict[str, tuple[tuple[int, ...], DTypeLike]] = {
        "step_preds": ((steps, cells), np.min_scalar_type(config.vocab_size - 1)),
        "step_confidence": ((steps, cells), np.float16),
        "step_q_halt_logits": ((steps,), np.float32),
        "step_wants_to_halt": ((steps,), np.bool_),
    }
    if "logits" in outputs:
        layout["step_logits"] = (steps, cells, config.vocab_size), np.float32
    if "q_continue_logits" in outputs:
        layout["step_q_continue_logits"] = (steps,), np.float32
    if depth != "eval":
        try:
            check_recordable(model.model)
        except ValueError as error:
            raise InputError(f"capture.depth={depth}: {error}; or capture.depth=eval") from error
        cycles, latent = config.H_cycles, (config.latent_length, config.hidden_size)
        for name in ("preds", "confidence", "q_halt_logits"):
            shape, dtype = layout[f"step_{name}"]
            layout[f"cycle_{name}"] = (steps, cycles, *shape[1:]), dtype
        layout["z_H"] = (steps, cycles, *latent), np.float32
        layers = (config.L_cycles,) if depth == "layer" else ()
        layout["z_L"] = (steps, cycles, *layers, *latent), np.float32
    return layout


def _numbers(tensor: Tensor) -> NDArray:
    return tensor.to(torch.float32).cpu().numpy()
