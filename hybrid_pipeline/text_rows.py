"""Rows that come with text: which sentences go with which grid, and the controls that take the right ones away.

A row names its sentence by a number into `TextRows.sentences`, of which number 0 is the empty one. Under the control
``shuffled`` a row gets the sentence of another row drawn at random, under ``none`` the empty one; grids, labels and
order stay the same. Every evaluation runs every set under each control, so that they stand beside the figure.

    batch = data.train_batch(step, global_batch_size=64, slots=range(64))      # inputs, labels, texts, ...
    for name, batch, row_index in data.test_batches(256): ...                  # "text", then "text_shuffled", ...
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from datasets.common import ARC_PAD, ARC_VOCAB_SIZE, IGNORE_LABEL_ID, PuzzleDatasetMetadata

Control = Literal["text", "shuffled", "none"]
Batch = dict[str, NDArray[np.int32]]

NO_TEXT = 0
SHARE_MOVED = 0.5

# Tell these draws from each other and from those of the data sets, halting, harvests and noise.
ROW_STREAM, SENTENCE_STREAM, SHUFFLE_STREAM, MOVE_STREAM = 300, 301, 302, 303


@dataclass(frozen=True)
class TextRows:
    """N rows. `inputs`, `labels` int32 [N, cells], labels without PAD; `texts`: for each row the numbers of the
    sentences that state its task, any of them as good as another; `questions` int64 [N]: rows of one number ask for
    one answer; `room` int64 [N, 2], if they may be moved in training: by how many cells down and right at most."""

    inputs: NDArray[np.int32]
    labels: NDArray[np.int32]
    texts: list[list[int]]
    questions: NDArray[np.int64]
    room: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class TextData:
    """`sentences[0]` is the empty one. `test` has a set of rows for each name, in the order of evaluation."""

    sentences: list[str]
    train: TextRows
    test: dict[str, TextRows]
    seed: int
    digest: str

    @property
    def metadata(self) -> PuzzleDatasetMetadata:
        """What a model asks of data: one blank puzzle identifier, for the text alone says what the task is."""
        rows, cells = self.train.inputs.shape
        return PuzzleDatasetMetadata(
            pad_id=0,
            ignore_label_id=ARC_PAD,
            blank_identifier_id=0,
            vocab_size=ARC_VOCAB_SIZE,
            seq_len=cells,
            num_puzzle_identifiers=1,
            total_groups=rows,
            mean_puzzle_examples=1,
            sets=list(self.test),
            kind="arc",
        )

    def train_batch(self, step: int, global_batch_size: int, slots: range, control: Control = "text") -> Batch:
        """The rows of this process at a step: a function of (seed, step, slot), however many processes there are."""
        rows = self._draws(ROW_STREAM, step).integers(len(self.train.texts), size=global_batch_size)
        told = rows
        if control == "shuffled":
            told = self._draws(SHUFFLE_STREAM, step).integers(len(self.train.texts), size=global_batch_size)
        which = self._draws(SENTENCE_STREAM, step).random(global_batch_size)
        texts = [_pick(self.train.texts[row], share) for row, share in zip(told, which, strict=True)]
        mine = slice(slots.start, slots.stop)
        batch = _batch(self.train, rows[mine], texts[mine], control)
        if self.train.room is None:
            return batch
        return batch | _moved(batch, self._offsets(self.train.room[rows], step)[mine])

    def _offsets(self, room: NDArray[np.int64], step: int) -> NDArray[np.int64]:
        """Cells down and right, [rows, 2]: none for about half of the rows, as in testing, else anything there is
        room for."""
        draws = self._draws(MOVE_STREAM, step).random((len(room), 3))
        return np.where(draws[:, :1] < SHARE_MOVED, (draws[:, 1:] * (room + 1)).astype(np.int64), 0)

    def named_sets(self) -> list[tuple[str, TextRows]]:
        """The sets of an evaluation: all rows with their text, then as ``NAME_shuffled`` and ``NAME_none``."""
        endings = ("", "_shuffled", "_none")
        return [(name + ending, rows) for name, rows in self.test.items() for ending in endings]

    def locate(self, row_number: int) -> tuple[str, TextRows, int]:
        """The set that a row number of `test_batches` belongs to, its rows, and the place among them."""
        for name, rows in self.named_sets():
            if row_number < len(rows.texts):
                return name, rows, row_number
            row_number -= len(rows.texts)
        raise IndexError(f"there is no test row {row_number} beyond the last")

    def test_batches(
        self, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[str, Batch, NDArray[np.int64]]]:
        """(set, this rank's share of a batch, row numbers, -1 for padding), as `datasets.puzzle_dataset` has it.

        Rows are numbered through all sets.
        """
        share, first_number = batch_size // world_size, 0
        for name, rows in self.named_sets():
            control = name.rpartition("_")[2] if name not in self.test else "text"
            count = len(rows.texts)
            texts = self._test_texts(rows, control)
            for start in range(0, count, batch_size):
                mine = np.arange(start + rank * share, start + (rank + 1) * share)
                here = np.minimum(mine, count - 1)
                batch = _batch(rows, here, [texts[row] for row in here], control)
                batch["labels"][mine >= count] = IGNORE_LABEL_ID
                yield name, batch, np.where(mine < count, first_number + mine, -1)
            first_number += count

    def _test_texts(self, rows: TextRows, control: str) -> list[int]:
        """The sentence of every row: a seeded choice among its own, or that of another row."""
        draws = self._draws(SENTENCE_STREAM, 2**32)
        texts = [_pick(choice, draws.random()) for choice in rows.texts]
        if control == "shuffled":
            # One random cycle through all rows, so that none keeps its own.
            order = self._draws(SHUFFLE_STREAM, 2**32).permutation(len(texts))
            told = np.array(texts)
            told[order] = told[np.roll(order, 1)]
            return told.tolist()
        return texts

    def _draws(self, stream: int, step: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self.seed, stream], counter=[0, 0, 0, step]))


def copied_input(rows: TextRows) -> tuple[float, float]:
    """Shares of rows and, on average over rows, of labelled cells that are right if the input is given as the answer:
    the trivial baseline where nothing is known of a task."""
    labelled = rows.labels != IGNORE_LABEL_ID
    right = (rows.inputs == rows.labels) & labelled
    return float((right == labelled).all(1).mean()), float((right.sum(1) / labelled.sum(1)).mean())


def _moved(batch: Batch, offsets: NDArray[np.int64]) -> Batch:
    """Inputs and labels of a batch with each row's grids moved down and right; what is moved in was empty."""
    side = math.isqrt(batch["inputs"].shape[1])
    return {
        key: np.stack(
            [
                np.roll(tokens.reshape(side, side), offset, axis=(0, 1)).ravel()
                for tokens, offset in zip(batch[key], offsets, strict=True)
            ]
        )
        for key in ("inputs", "labels")
    }


def _pick(choices: Sequence[int], share: float) -> int:
    return choices[int(share * len(choices))]


def _batch(rows: TextRows, index: NDArray, texts: Sequence[int], control: str) -> Batch:
    told = np.full(len(index), NO_TEXT) if control == "none" else np.asarray(texts)
    return {
        "inputs": rows.inputs[index],
        "labels": rows.labels[index],
        "puzzle_identifiers": np.zeros(len(index), np.int32),
        "texts": told.astype(np.int32),
    }
