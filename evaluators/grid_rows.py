"""What the Sudoku and the maze evaluator share: integer counts, three numbers a row, and the table of rows.

Counts are integers and rows are sorted by their place in the data set, so the figures and the table do not depend
on the batches or on the number of ranks.

Usage: right = tally.add(batch, predictions); figures = tally.merged(gather).exact_figures("Sudoku")
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import cast

import numpy as np

from datasets.common import IGNORE_LABEL_ID, InputError, PuzzleDatasetMetadata
from evaluators.common import Gather, wilson_interval, write_text


def square_side(data_path: str | Path, metadata: PuzzleDatasetMetadata) -> int:
    """Side of the square grid; directories of the original do not record it, so it may come from seq_len."""
    side = math.isqrt(metadata.seq_len)
    if metadata.grid not in (None, (side, side)) or side * side != metadata.seq_len:
        raise InputError(
            f"{data_path}: grid {metadata.grid} of {metadata.seq_len} cells is not square; "
            "choose the evaluator of this kind of data set"
        )
    return side


class RowTally:
    """Counts over rows, and exactness and cell accuracy of each row (13 bytes a row)."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, batch: dict[str, np.ndarray], predictions: np.ndarray) -> np.ndarray:
        """Scores n rows against their labels and returns the right cells, bool [n, seq_len]."""
        scored = batch["labels"] != IGNORE_LABEL_ID
        right = (predictions == batch["labels"]) & scored
        cells = scored.sum(axis=1)
        exact = (right.sum(axis=1) == cells) & (cells > 0)
        accuracy = (right.sum(axis=1) / np.maximum(cells, 1)).astype(np.float32)
        self._columns.append((batch["row_index"].astype(np.int64), exact, accuracy))
        self.counts.update(rows=len(exact), exact=int(exact.sum()), cells=int(cells.sum()), right=int(right.sum()))
        return right

    def merged(self, gather: Gather) -> RowTally | None:
        """The tally of all ranks on rank 0, None elsewhere."""
        parts = gather(self)
        if parts is None:
            return None
        total = RowTally()
        for part in cast("list[RowTally]", parts):
            total.counts.update(part.counts)
            total._columns += part._columns
        return total

    def share(self, part: str, whole: str) -> float:
        """One count over another, 0 if there is nothing to count."""
        return self.counts[part] / max(self.counts[whole], 1)

    def exact_figures(self, name: str) -> dict[str, float]:
        """Rows, exact accuracy with its 95 % interval, and cell accuracy."""
        low, high = wilson_interval(self.counts["exact"], self.counts["rows"])
        return {
            f"{name}/rows": float(self.counts["rows"]),
            f"{name}/exact": self.share("exact", "rows"),
            f"{name}/exact_low": low,
            f"{name}/exact_high": high,
            f"{name}/cell": self.share("right", "cells"),
        }

    def write_csv(self, path: Path) -> None:
        """row_index, exact (0 or 1) and cell_accuracy of every row, in data set order."""
        lines = ["row_index,exact,cell_accuracy"]
        if self._columns:
            index, exact, accuracy = (np.concatenate(column) for column in zip(*self._columns, strict=True))
            order = np.argsort(index, kind="stable")
            lines += [
                f"{row},{int(is_exact)},{share:.6f}"
                for row, is_exact, share in zip(index[order], exact[order], accuracy[order], strict=True)
            ]
        write_text(path, "\n".join(lines) + "\n")
