"""The loader: training batches as a pure function of (seed, step), and the test rows in order.

Several dataset directories make one dataset: their identifiers are shifted so that they never collide (the
blank identifier 0 is shared), their groups are shuffled together.

Usage: ``for batch in PuzzleDataset(["data/arc1"], "train").train_batches(0, steps, 768, range(768)): ...``
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from datasets.common import IGNORE_LABEL_ID, InputError, PuzzleDatasetMetadata
from datasets.prefetch import make_ahead
from datasets.row_stream import SUBSET, RowStream, random_words
from datasets.sources import Member, Source, keep_tasks, open_sources, with_task_names

Batch = dict[str, np.ndarray]

_TEST_BATCHES_AHEAD = 2


class PuzzleDataset:
    """One split of one or more dataset directories.

    Args:
        paths: the directories; they must agree in vocabulary and length.
        split: the folder in each, "train" or "test".
        seed: of the row stream and of the subset; every rank must give the same.
        max_puzzles: keep a random subset of this many groups (puzzles with their augmentations), if there are
            more. Identifiers keep their numbers, so the puzzle table does not shrink.
        subset_of: the training set that this is to test. Identifiers are numbered as there, and where puzzles
            have names only the tasks that it kept are tested.

    Attributes:
        metadata: of all directories together and of the subset: ``sets``, ``total_groups``,
            ``mean_puzzle_examples``, ``total_puzzles``, ``num_puzzle_identifiers`` (blank included).
        sources: the directories with a group left, for evaluators.
        dataset_hash: identifies the content and the subset, but not the storage.
        num_rows: rows of one pass over everything, as `test_batches` makes it.

    A batch has ``inputs`` and ``labels`` [n, seq_len] and ``puzzle_identifiers`` [n], int32; labels to ignore
    are -100. Raises `InputError` at construction if the files are unusable or nothing is left to read.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        split: str,
        *,
        seed: int = 0,
        max_puzzles: int | None = None,
        subset_of: PuzzleDataset | None = None,
    ):
        known = None if subset_of is None else subset_of._all_sources
        sources, members = open_sources(paths, split, numbered_as=known)
        reduced = known is not None and any(source.task_names is not None for source in known)
        if known is not None and reduced:
            members = keep_tasks(sources, members, known)
        if max_puzzles is not None:
            members, dropped = _draw_groups(members, max_puzzles, seed)
            reduced |= dropped
        if reduced:
            sources = with_task_names(sources, members)
        self._all_sources: list[Source] = sources
        self._numbered_as = sources if known is None else known
        self._members = [member for member in members if member.groups.size]
        used = {member.source for member in self._members}
        self.sources: list[Source] = [source for i, source in enumerate(sources) if i in used]
        self._seed = seed
        self._puzzle_starts = np.cumsum([0, *(member.puzzles.num_puzzles for member in self._members)])
        self.num_rows = sum(_kept_rows(member) for member in self._members)
        if self.num_rows == 0:
            where = ", ".join(str(Path(path) / split) for path in paths)
            raise InputError(f"{where}: no row is left; relax max_train_puzzles or max_eval_puzzles")
        self.dataset_hash = _dataset_hash(sources, members, reduced)
        self.metadata = self._merged_metadata(subset_of)

    @property
    def rows_per_epoch(self) -> float:
        """Rows of a pass in which every group gives one puzzle; as published, a mean over puzzles, not over groups."""
        return sum(m.groups.size * _kept_rows(m) / _kept_puzzles(m).size for m in self._members)

    @cached_property
    def identifiers_hash(self) -> str:
        """Tells which puzzle every identifier stands for, in this data set or in the one that it is a subset of."""
        files = [source.path / "identifiers.json" for source in self._numbered_as if source.named]
        return _digest([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])

    def train_batch(self, step: int, global_batch_size: int, slots: range) -> Batch:
        """The rows ``slots`` of global batch ``step`` (from 0), whichever process asks for them."""
        if step < 0 or not 0 <= min(slots, default=0) <= max(slots, default=0) < global_batch_size:
            raise ValueError(f"step {step} and {slots} do not fit global_batch_size {global_batch_size}")
        return self.train_rows(step * global_batch_size + np.asarray(slots, np.int64))

    def train_rows(self, positions: np.ndarray) -> Batch:
        """The rows at any positions of the endless training stream, int64 [n], each at least 0."""
        order = np.argsort(positions, kind="stable")
        puzzle, example = np.empty_like(positions), np.empty_like(positions)
        puzzle[order], example[order] = self._stream.rows(positions[order])
        return self._batch(puzzle, example)

    def test_rows(self, rows: np.ndarray) -> Batch:
        """The rows of the given indices, int64 [n] in [0, num_rows), as `test_batches` numbers them."""
        ends = np.cumsum([_kept_rows(member) for member in self._members])
        member_of_row = np.searchsorted(ends, rows, side="right")
        puzzle, example = np.empty_like(rows), np.empty_like(rows)
        for i, member in enumerate(self._members):
            of_member = np.flatnonzero(member_of_row == i)
            first_row = ends[i] - _kept_rows(member)
            puzzle[of_member], example[of_member] = self._test_rows(i, rows[of_member] - first_row)
        return self._batch(puzzle, example)

    def train_batches(
        self, start_step: int, stop_step: int, global_batch_size: int, slots: range, prefetch: int = 4
    ) -> Iterator[Batch]:
        """`train_batch` of every step in [start_step, stop_step), made ahead by a background thread."""

        def make(step: int) -> Batch:
            return self.train_batch(step, global_batch_size, slots)

        return make_ahead(make, range(start_step, stop_step), prefetch)

    def test_batches(
        self, global_batch_size: int, rank: int, world_size: int
    ) -> Iterator[tuple[str, Batch, np.ndarray]]:
        """This rank's share of all rows in order: the set's name, the batch and the rows' indices.

        Every rank gets the same number of batches, each of ``global_batch_size // world_size`` rows; what is
        short is filled with blank rows of index -1. Indices, int64 [n], are in [0, num_rows).
        """
        if global_batch_size < 1 or global_batch_size % world_size:
            raise InputError(
                f"a batch of {global_batch_size} rows cannot be shared out over {world_size} processes; use a multiple"
            )
        local = global_batch_size // world_size
        shares, first_row = [], 0
        for i, member in enumerate(self._members):
            end_row = first_row + _kept_rows(member)
            for start in range(first_row + rank * local, end_row + rank * local, global_batch_size):
                shares.append((i, first_row, start, min(start + local, end_row)))
            first_row = end_row

        def make(share: tuple[int, int, int, int]) -> tuple[str, Batch, np.ndarray]:
            i, first_row, start, stop = share
            row = np.arange(start, max(start, stop))
            batch = self._batch(*self._test_rows(i, row - first_row))
            return self._members[i].name, self._padded(batch, local), _filled(row, local, -1)

        return make_ahead(make, shares, _TEST_BATCHES_AHEAD)

    @cached_property
    def _stream(self) -> RowStream:
        starts = zip(self._members, self._puzzle_starts, strict=False)
        return RowStream(
            first_puzzle=np.concatenate([m.puzzles.group_indices[m.groups] + start for m, start in starts]),
            num_puzzles=np.concatenate([np.diff(m.puzzles.group_indices)[m.groups] for m in self._members]),
            puzzle_sizes=np.concatenate([np.diff(m.puzzles.puzzle_indices) for m in self._members]),
            seed=self._seed,
        )

    @cached_property
    def _test_index(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For every member its kept puzzles [K] and the first row of each [K + 1]."""
        index = []
        for member in self._members:
            puzzles = _kept_puzzles(member)
            sizes = np.diff(member.puzzles.puzzle_indices)[puzzles]
            index.append((puzzles, np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])))
        return index

    def _test_rows(self, member: int, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        puzzles, first_rows = self._test_index[member]
        position = np.searchsorted(first_rows, row, side="right") - 1
        return puzzles[position] + self._puzzle_starts[member], row - first_rows[position]

    def _batch(self, puzzle: np.ndarray, example: np.ndarray) -> Batch:
        """Rows of any puzzles, which are counted through all members."""
        n, seq_len = puzzle.size, self.metadata.seq_len
        inputs, labels = np.empty((n, seq_len), np.int32), np.empty((n, seq_len), np.int32)
        identifiers = np.empty(n, np.int32)
        member_of_row = np.searchsorted(self._puzzle_starts, puzzle, side="right") - 1
        for i, member in enumerate(self._members):
            rows = np.flatnonzero(member_of_row == i)
            if rows.size == 0:
                continue
            local = puzzle[rows] - self._puzzle_starts[i]
            inputs[rows], targets = member.puzzles.tokens(local, example[rows])
            labels[rows] = np.where(
                targets == member.puzzles.metadata.ignore_label_id, IGNORE_LABEL_ID, targets.astype(np.int32)
            )
            own = member.puzzles.puzzle_identifiers[local]
            identifiers[rows] = np.where(own > 0, own + self._all_sources[member.source].id_offset, 0)
        return {"inputs": inputs, "labels": labels, "puzzle_identifiers": identifiers}

    def _padded(self, batch: Batch, rows: int) -> Batch:
        blank = {"inputs": self.metadata.pad_id, "labels": IGNORE_LABEL_ID, "puzzle_identifiers": 0}
        return {key: _filled(batch[key], rows, value) for key, value in blank.items()}

    def _merged_metadata(self, subset_of: PuzzleDataset | None) -> PuzzleDatasetMetadata:
        groups = sum(member.groups.size for member in self._members)
        puzzles = sum(_kept_puzzles(member).size for member in self._members)
        used = [source.metadata for source in self.sources]
        num_identifiers = 1 + sum(source.metadata.num_puzzle_identifiers - 1 for source in self._all_sources)
        if subset_of is not None:
            num_identifiers = subset_of.metadata.num_puzzle_identifiers
        differing = [
            key
            for key in ("kind", "grid", "box", "provenance")
            if any(getattr(metadata, key) != getattr(used[0], key) for metadata in used)
        ]
        return used[0].model_copy(
            update=dict.fromkeys(differing)
            | {
                "num_puzzle_identifiers": num_identifiers,
                "total_groups": groups,
                "total_puzzles": puzzles,
                "mean_puzzle_examples": self.num_rows / puzzles,
                "sets": [member.name for member in self._members],
                "dataset_hash": self.dataset_hash,
            }
        )


def _draw_groups(members: Sequence[Member], count: int, seed: int) -> tuple[list[Member], bool]:
    """The members with at most ``count`` of their groups, and whether any was dropped; larger counts nest."""
    if count < 1:
        raise InputError(f"max_puzzles is {count}, expected at least 1 (max_train_puzzles, max_eval_puzzles)")
    ends = np.cumsum([member.groups.size for member in members])
    if count >= ends[-1]:
        return list(members), False
    keys = random_words(seed, SUBSET, 0, int(ends[-1]))
    kept = np.zeros(ends[-1], bool)
    kept[np.argsort(keys, kind="stable")[:count]] = True
    parts = np.split(kept, ends[:-1])
    drawn = [replace(member, groups=member.groups[p]) for member, p in zip(members, parts, strict=True)]
    return drawn, True


def _kept_puzzles(member: Member) -> np.ndarray:
    """Indices of the puzzles of the kept groups, int64, ascending."""
    kept = np.zeros(member.puzzles.num_groups, bool)
    kept[member.groups] = True
    return np.flatnonzero(np.repeat(kept, np.diff(member.puzzles.group_indices)))


def _kept_rows(member: Member) -> int:
    return int(np.diff(member.puzzles.puzzle_indices)[_kept_puzzles(member)].sum())


def _filled(array: np.ndarray, rows: int, value: int) -> np.ndarray:
    """``array`` with rows of ``value`` appended up to ``rows``."""
    missing = np.full((rows - len(array), *array.shape[1:]), value, array.dtype)
    return np.concatenate([array, missing])


def _dataset_hash(sources: Sequence[Source], members: Sequence[Member], reduced: bool) -> str:
    parts = []
    for i, source in enumerate(sources):
        own = (member.puzzles.content_hash() for member in members if member.source == i)
        parts.append(source.metadata.dataset_hash or _digest(list(own)))
    if reduced:
        parts += [_digest(member.groups.tolist()) for member in members]
    return parts[0] if len(parts) == 1 else _digest(parts)


def _digest(parts: Sequence[object]) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()
