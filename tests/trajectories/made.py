"""Solves made up for tests, of any kind of puzzle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from datasets.common import PuzzleDatasetMetadata
from trajectories.solve import Solve
from trajectories.store import DataFolder, Header, symbols


def made_solves(kind: Any, side: int, vocabulary: int, rows: int = 100, steps: int = 16) -> list[Solve]:
    """Answers that start at random and change a tenth of the cells at every step, with noisy confidence."""
    random = np.random.default_rng(0)
    metadata = PuzzleDatasetMetadata(
        pad_id=0, ignore_label_id=0, blank_identifier_id=0, vocab_size=vocabulary, seq_len=side**2, sets=["all"],
        num_puzzle_identifiers=1, total_groups=rows, mean_puzzle_examples=1, kind=kind,
    )  # fmt: skip
    header = Header(
        kind=kind, grid=(side, side), box=(3, 3) if kind == "sudoku" else None, vocab_size=vocabulary, depth="eval",
        symbols=symbols(kind, vocabulary), max_steps=steps, dataset_rows=rows, dataset_hash="", provenance={},
        sources=[DataFolder(path=Path("data"), metadata=metadata, id_offset=0, task_names=None)],
    )  # fmt: skip
    made = []
    for row in range(rows):
        labels = random.integers(2, vocabulary, side**2)
        preds = np.where(random.random((steps, side**2)) < 0.1, random.integers(2, vocabulary, (1, side**2)), labels)
        made.append(
            Solve(
                header=header, row=row, identifier=0, labels=labels, preds=preds,
                inputs=np.where(random.random(side**2) < 0.5, labels, 1),
                confidence=np.clip(random.normal(0.9, 0.1, preds.shape), 0, 1),
                q_halt=random.normal(size=steps), wants_to_halt=np.zeros(steps, bool),
                moments=[(step + 1, 1) for step in range(steps)],
            )
        )  # fmt: skip
    return made
