"""One puzzle being solved, out of a capture or fresh from a model: what the pages, films and reports are made of.

A frame is a moment at which an answer can be read out: after an ACT step or, where H-cycles were captured, after each
of them.

Usage: ``for solve in solves(open_capture(folder), rows=[0, 17]): print(solve.name, solve.cells_right)``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.common import IGNORE_LABEL_ID
from evaluators.render import given_cells
from trajectories.store import NO_ROW, Capture, Header, Rows


@dataclass(frozen=True)
class Solve:
    """F frames of one row of the data set, or of a puzzle that is in none, whose `row` is `NO_ROW`.

    `identifier` is the row's puzzle identifier; `inputs`, `labels` [seq_len] tokens, labels -100 where nothing is
    asked; `preds` [F, seq_len] tokens and `confidence` [F, seq_len] in [0, 1]; `q_halt` [F] halting logits;
    `wants_to_halt` [F] bool; `moments` is the ACT step, from 1, and the H-cycle, from 1, of every frame.
    """

    header: Header
    row: int
    identifier: int
    inputs: NDArray
    labels: NDArray
    preds: NDArray
    confidence: NDArray
    q_halt: NDArray
    wants_to_halt: NDArray
    moments: list[tuple[int, int]]

    @property
    def name(self) -> str:
        """What the puzzle is called where it has no name of its own."""
        return "your grid" if self.row == NO_ROW else f"row {self.row}"

    @property
    def cycles(self) -> int:
        """Frames in an ACT step."""
        return self.moments[-1][1] if self.moments else 1

    @cached_property
    def given(self) -> NDArray[np.bool_]:
        """The cells of the puzzle that an answer must repeat [seq_len]."""
        return given_cells(self.header.kind, self.inputs)

    @cached_property
    def asked(self) -> NDArray[np.bool_]:
        """The cells to be found, where they are known [seq_len]."""
        return (self.labels != IGNORE_LABEL_ID) & ~self.given

    @cached_property
    def wrong(self) -> NDArray[np.bool_]:
        """[F, seq_len]: the cells that differ from the label, given ones included."""
        return (self.labels != IGNORE_LABEL_ID) & (self.preds != self.labels)

    @property
    def labelled(self) -> bool:
        return bool((self.labels != IGNORE_LABEL_ID).any())

    @property
    def solved(self) -> NDArray[np.bool_]:
        """[F]"""
        return (self.wrong.sum(1) == 0) & self.labelled

    @property
    def cells_right(self) -> NDArray[np.int64]:
        """Asked cells that are right [F]."""
        return (self.asked & ~self.wrong).sum(1)

    @property
    def given_changed(self) -> NDArray[np.int64]:
        """Given cells that the answer does not repeat [F]: no asked cell is wrong by them, yet nothing is solved."""
        return (self.given & self.wrong).sum(1)

    @property
    def halt_probability(self) -> NDArray[np.float64]:
        """[F]"""
        return 1 / (1 + np.exp(-self.q_halt.astype(np.float64)))

    def steps_only(self) -> Solve:
        """Without the frames inside ACT steps."""
        last = np.array([cycle == self.cycles for _, cycle in self.moments])
        return replace(
            self,
            preds=self.preds[last],
            confidence=self.confidence[last],
            q_halt=self.q_halt[last],
            wants_to_halt=self.wants_to_halt[last],
            moments=[(step, 1) for step, cycle in self.moments if cycle == self.cycles],
        )


def dictionary_of(rows: Rows, i: int, symbols: list[str] | None = None) -> dict[str, Any]:
    """Row `i` of recorded arrays in the layout of the guide to captured results: ``puzzle_idx``, ``input``, ``label``
    and ``steps``, each with ``step_number`` (from 0), ``predictions``, ``confidence``, ``is_halted`` and
    ``q_halt_logits``. Predictions, input and label are tokens; ``symbols`` says what each of them stands for.
    """
    last = int(rows["steps"][i]) - 1
    return {
        "puzzle_idx": int(rows["row_index"][i]),
        "input": rows["inputs"][i],
        "label": rows["labels"][i],
        "symbols": symbols,
        "steps": [
            {
                "step_number": step,
                "predictions": rows["step_preds"][i, step],
                "confidence": rows["step_confidence"][i, step],
                "is_halted": step == last,
                "q_halt_logits": float(rows["step_q_halt_logits"][i, step]),
            }
            for step in range(last + 1)
        ],
    }


def solves(capture: Capture, rows: Sequence[int] | None = None) -> list[Solve]:
    """The captured rows, or those with the indices `rows`, in that order; `InputError` for one that is not there."""
    positions = np.arange(len(capture)) if rows is None else capture.positions(rows)
    names = [name for name in capture.names if not name.startswith(("z_", "step_logits"))]
    arrays = {name: capture.array(name, positions) for name in names}
    return [solve_of(capture.header, arrays, i) for i in range(len(positions))]


def solve_of(header: Header, rows: Rows, i: int) -> Solve:
    """Row `i` of recorded arrays (`training.recording.Recorder`)."""
    steps = int(rows["steps"][i])
    level = "cycle" if "cycle_preds" in rows else "step"
    preds = rows[f"{level}_preds"][i, :steps]
    cycles = preds.shape[1] if level == "cycle" else 1

    def frames(name: str) -> NDArray:
        array = rows[f"{level}_{name}"][i, :steps]
        return array.reshape(steps * cycles, *array.shape[1 + (level == "cycle") :])

    return Solve(
        header=header,
        row=int(rows["row_index"][i]),
        identifier=int(rows["puzzle_identifiers"][i]),
        inputs=rows["inputs"][i],
        labels=rows["labels"][i],
        preds=frames("preds").astype(np.int32),
        confidence=frames("confidence").astype(np.float32),
        q_halt=frames("q_halt_logits"),
        # Between two ACT steps nobody asks whether to halt.
        wants_to_halt=np.repeat(rows["step_wants_to_halt"][i, :steps], cycles),
        moments=[(step, cycle) for step in range(1, steps + 1) for cycle in range(1, cycles + 1)],
    )


def telling(solves: Sequence[Solve]) -> Solve:
    """Among those that end up right, the one whose answer changes most often, then that most wrong at first."""

    def score(solve: Solve) -> tuple[bool, int, int]:
        changes = int((solve.preds[1:] != solve.preds[:-1]).any(1).sum())
        return bool(solve.solved[-1]), changes, int(solve.wrong[0].sum())

    return max(solves, key=score)
