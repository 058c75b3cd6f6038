"""Sudoku: exactly solved puzzles, right cells, and answers that obey the rules whether or not they match the label.

An answer is valid if it keeps the clues and has every digit once in each row, column and box. For a puzzle with
one solution that is the same as exact, so a gap between the two would betray a faulty data set. The baseline is
copying the clues and filling all blanks with the digit that is rarest among them: right cells, and exact answers.

Usage: Sudoku("data/sudoku-6x6", metadata).result(Path("runs/a")) after update_batch; writes sudoku_results.csv
"""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

import numpy as np

from datasets.common import IGNORE_LABEL_ID, InputError, PuzzleDatasetMetadata
from evaluators.common import Gather, single_process
from evaluators.grid_rows import RowTally, square_side

BLANK, FIRST_DIGIT = 1, 2  # tokens; 0 is padding


class Sudoku:
    """Evaluator of Sudoku data sets (see the module's docstring for what it measures).

    Args:
        data_path: the data set's folder, for messages.
        eval_metadata: metadata of the evaluated split; without ``box`` the box is the squarest that fits.
        id_offset, task_names: unused, for Sudoku has no identifiers; there because every evaluator takes them.

    Raises:
        InputError: the split's grid or box is no Sudoku's.
    """

    required_outputs = frozenset({"preds"})

    def __init__(
        self,
        data_path: str | Path,
        eval_metadata: PuzzleDatasetMetadata,
        *,
        id_offset: int = 0,
        task_names: Collection[str] | None = None,
    ) -> None:
        self._size = square_side(data_path, eval_metadata)
        self._box = eval_metadata.box or _squarest_box(self._size)
        if self._box[0] * self._box[1] != self._size or eval_metadata.vocab_size != FIRST_DIGIT + self._size:
            raise InputError(
                f"{data_path}: box {self._box} and vocabulary of {eval_metadata.vocab_size} do not suit a "
                f"{self._size}x{self._size} Sudoku; choose the evaluator of this kind of data set"
            )
        self._tally = RowTally()

    def begin_eval(self) -> None:
        """Forget the rows of the previous evaluation."""
        self._tally = RowTally()

    def update_batch(self, batch: dict[str, np.ndarray], preds: dict[str, np.ndarray]) -> None:
        """Add n real rows: ``preds["preds"]`` [n, seq_len] are tokens."""
        inputs, labels, predictions = batch["inputs"], batch["labels"], preds["preds"]
        blank = (inputs == BLANK) & (labels != IGNORE_LABEL_ID)
        right = self._tally.add(batch, predictions)
        filled = self._constant_fill(inputs) == labels
        self._tally.counts.update(
            valid=int(self._is_valid(inputs, predictions).sum()),
            blank=int(blank.sum()),
            right_blank=int((right & blank).sum()),
            baseline=int(filled.sum()),
            baseline_rows=int(filled.all(axis=1).sum()),
        )

    def result(self, save_dir: Path | None, gather: Gather = single_process) -> dict[str, float] | None:
        """Figures on rank 0, which writes sudoku_results.csv into ``save_dir``; None on the other ranks."""
        tally = self._tally.merged(gather)
        if tally is None:
            return None
        if save_dir is not None:
            tally.write_csv(save_dir / "sudoku_results.csv")
        return tally.exact_figures("Sudoku") | {
            "Sudoku/blank_cell": tally.share("right_blank", "blank"),
            "Sudoku/valid": tally.share("valid", "rows"),
            "Sudoku/copy_baseline": tally.share("baseline", "cells"),
            "Sudoku/copy_baseline_exact": tally.share("baseline_rows", "rows"),
        }

    def _is_valid(self, inputs: np.ndarray, predictions: np.ndarray) -> np.ndarray:
        """Which predictions [n, seq_len] are full grids by the rules that keep the clues; bool [n]."""
        size, (box_rows, box_cols) = self._size, self._box
        digits = (predictions >= FIRST_DIGIT) & (predictions < FIRST_DIGIT + size)
        keeps_clues = (inputs == BLANK) | (predictions == inputs)
        grid = np.left_shift(1, np.where(digits, predictions - FIRST_DIGIT, 0)).reshape(-1, size, size)
        boxes = grid.reshape(-1, size // box_rows, box_rows, size // box_cols, box_cols).swapaxes(2, 3)
        units = np.concatenate([grid, grid.swapaxes(1, 2), boxes.reshape(-1, size, size)], axis=1)
        has_every_digit = np.bitwise_or.reduce(units, axis=2) == (1 << size) - 1
        return (digits & keeps_clues).all(axis=1) & has_every_digit.all(axis=1)

    def _constant_fill(self, inputs: np.ndarray) -> np.ndarray:
        """Inputs [n, seq_len] with each row's blanks filled by its rarest digit."""
        digits = np.arange(FIRST_DIGIT, FIRST_DIGIT + self._size)
        counts = np.stack([(inputs == digit).sum(axis=1) for digit in digits], axis=1)
        return np.where(inputs == BLANK, digits[counts.argmin(axis=1)][:, None], inputs)


def _squarest_box(size: int) -> tuple[int, int]:
    rows = next(rows for rows in range(math.isqrt(size), 0, -1) if size % rows == 0)
    return rows, size // rows
