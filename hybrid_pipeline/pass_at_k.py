"""pass@K where several sentences ask the same question: their answers vote, and the right one is among the first K.

An evaluator by the protocol of `evaluators.common`. Which question and which set a row belongs to is read off its row
number (see `TextData.test_batches`). With one row a question, pass@1 is the exact accuracy of cropped grids.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np

from evaluators.common import Gather, single_process, wilson_interval
from evaluators.voting import Votes, as_fixed_point
from hybrid_pipeline.grids import Grid, crop_grid_from_eos
from hybrid_pipeline.text_rows import TextData

KS = (1, 2)


class PassAtK:
    required_outputs = frozenset({"preds", "q_halt_logits"})

    def __init__(self, data: TextData):
        self.data = data
        self.votes = Votes()

    def begin_eval(self) -> None:
        self.votes = Votes()

    def update_batch(self, batch: dict[str, np.ndarray], preds: dict[str, np.ndarray]) -> None:
        confidences = as_fixed_point(1 / (1 + np.exp(-preds["q_halt_logits"].astype(np.float64))))
        for row, tokens, confidence in zip(batch["row_index"], preds["preds"], confidences, strict=True):
            name, rows, place = self.data.locate(int(row))
            self.votes.add((name, int(rows.questions[place])), _key(crop_grid_from_eos(tokens)), confidence)

    def result(self, save_dir: Path | None, gather: Gather = single_process) -> dict[str, float] | None:
        """``{set}/pass@{K}`` with its 95 % interval over questions, and their number, on rank 0."""
        parts = gather(self.votes)
        if parts is None:
            return None
        votes = Votes.merged(cast("list[Votes]", parts))
        figures: dict[str, float] = {}
        for name, rows in self.data.named_sets():
            right = {int(q): _key(crop_grid_from_eos(row)) for q, row in zip(rows.questions, rows.labels, strict=True)}
            figures[f"{name}/questions"] = len(right)
            for k in KS:
                ranked = {q: [found.key for found in votes.ranked((name, q))[:k]] for q in right}
                solved = sum(right[q] in ranked[q] for q in right)
                low, high = wilson_interval(solved, len(right))
                figures |= {
                    f"{name}/pass@{k}": solved / len(right),
                    f"{name}/pass@{k}_low": low,
                    f"{name}/pass@{k}_high": high,
                }
        return figures


def _key(grid: Grid) -> bytes:
    return bytes(grid.shape) + grid.tobytes()
