"""The loader: the row stream, batches made ahead, test batches."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from datasets.common import InputError
from datasets.prefetch import make_ahead
from datasets.puzzle_dataset import PuzzleDataset
from datasets.row_stream import RowStream
from tests.datasets.toy_data import GROUPS, UNEVEN, row_numbers, write_original


def numbers(dataset: PuzzleDataset, steps: int, size: int) -> list[int]:
    return [n for step in range(steps) for n in row_numbers(dataset.train_batch(step, size, range(size)))]


@pytest.mark.parametrize("groups", [GROUPS, [[2, 1], [4], [5, 3, 1], [2]], [[1], [1, 1], [1]]])
def test_an_epoch_visits_every_group_with_all_examples_of_one_puzzle(tmp_path: Path, groups: list[list[int]]) -> None:
    dataset = PuzzleDataset([write_original(tmp_path / "d", "train", groups)], "train", seed=3)
    stream = (row_numbers(dataset.train_batch(step, 1, range(1)))[0] for step in itertools.count())
    puzzles: list[tuple[int, list[int]]] = []  # group and rows of every puzzle
    for g, group in enumerate(groups):
        for size in group:
            first = puzzles[-1][1][-1] + 1 if puzzles else 0
            puzzles.append((g, list(range(first, first + size))))
    puzzle_of = {row: p for p, (_, rows) in enumerate(puzzles) for row in rows}

    orders: set[tuple[int, ...]] = set()
    chosen: Counter[int] = Counter()
    first_rows: Counter[int] = Counter()
    for _ in range(200):
        visited: list[int] = []
        while len(visited) < len(groups):
            row = next(stream)
            g, rows = puzzles[puzzle_of[row]]
            assert sorted([row, *itertools.islice(stream, len(rows) - 1)]) == rows
            visited.append(g)
            chosen[puzzle_of[row]] += 1
            first_rows[row] += 1
        assert sorted(visited) == list(range(len(groups)))
        orders.add(tuple(visited))
    assert len(orders) == math.factorial(len(groups))
    for p, (g, rows) in enumerate(puzzles):
        assert abs(chosen[p] - 200 / len(groups[g])) < 35
        assert all(abs(first_rows[row] - chosen[p] / len(rows)) < 35 for row in rows)


@pytest.mark.parametrize("groups", [GROUPS, UNEVEN])
def test_any_batch_can_be_had_at_once(tmp_path: Path, groups: list[list[int]]) -> None:
    path = write_original(tmp_path / "d", "train", groups)
    whole = PuzzleDataset([path], "train", seed=1)
    stream = numbers(whole, 40, 7)
    assert numbers(PuzzleDataset([path], "train", seed=1), 25, 11) == stream[: 25 * 11]
    for step in (39, 0, 17, 38, 1):
        late = PuzzleDataset([path], "train", seed=1)
        expected = stream[7 * step : 7 * step + 7]
        assert row_numbers(late.train_batch(step, 7, range(7))) == expected
        for slots in (range(2), range(2, 3), range(3, 7), range(1, 7, 2), range(0)):
            assert row_numbers(late.train_batch(step, 7, slots)) == expected[slots.start : slots.stop : slots.step]
    assert numbers(PuzzleDataset([path], "train", seed=2), 10, 7) != stream[:70]


def test_a_batch_may_hold_many_epochs(tmp_path: Path) -> None:
    dataset = PuzzleDataset([write_original(tmp_path / "d", "train", GROUPS)], "train")
    batch = dataset.train_batch(0, 8 * 50, range(8 * 50))
    visits = Counter(row_numbers(batch))
    assert visits[4] == 50  # the group of one puzzle with one example
    assert sum(visits[row] for row in range(4)) == 100


def test_the_stream_is_pinned() -> None:
    """A run must go on where it was after any change of this code or of NumPy; so must this list."""
    stream = RowStream(np.array([0, 2, 3]), np.array([2, 1, 2]), np.array([2, 2, 3, 1, 1]), seed=2**40 + 1)
    puzzle, example = stream.rows(np.arange(6 * 10**9, 6 * 10**9 + 12))
    assert puzzle.tolist() == [2, 2, 2, 0, 0, 4, 1, 1, 2, 2, 2, 4]
    assert example.tolist() == [1, 2, 0, 0, 1, 0, 0, 1, 2, 0, 1, 0]


def test_slots_outside_the_batch_are_refused(tmp_path: Path) -> None:
    dataset = PuzzleDataset([write_original(tmp_path / "d", "train", GROUPS)], "train")
    for step, slots in ((-1, range(2)), (0, range(3, 5)), (0, range(-1, 2))):
        with pytest.raises(ValueError, match="do not fit"):
            dataset.train_batch(step, 4, slots)


def test_batches_made_ahead_are_the_batches(tmp_path: Path) -> None:
    dataset = PuzzleDataset([write_original(tmp_path / "d", "train", GROUPS)], "train")
    expected = [row_numbers(dataset.train_batch(step, 5, range(1, 4))) for step in range(3, 40)]
    for depth in (0, 1, 4):
        made = [row_numbers(batch) for batch in dataset.train_batches(3, 40, 5, range(1, 4), prefetch=depth)]
        assert made == expected


def test_batches_have_the_promised_types_and_ignored_labels(tmp_path: Path) -> None:
    batch = PuzzleDataset([write_original(tmp_path / "d", "train", GROUPS)], "train").train_batch(0, 6, range(6))
    assert {key: (a.dtype.name, a.shape) for key, a in batch.items()} == {
        "inputs": ("int32", (6, 5)),
        "labels": ("int32", (6, 5)),
        "puzzle_identifiers": ("int32", (6,)),
    }
    assert (batch["labels"][:, 4] == -100).all()
    assert (batch["labels"][:, :4] == batch["inputs"][:, :4]).all()
    unignored = write_original(tmp_path / "e", "train", GROUPS, ignore_label_id=None)
    assert (PuzzleDataset([unignored], "train").train_batch(0, 6, range(6))["labels"][:, 4] == 0).all()


def test_work_ahead_is_bounded_ordered_and_passes_on_errors() -> None:
    started: list[int] = []

    def make(i: int) -> int:
        started.append(i)
        if i == 5:
            raise InputError("five")
        return -i

    ahead = make_ahead(make, range(10), depth=2)
    assert next(ahead) == 0
    deadline = time.monotonic() + 10
    while len(started) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert started == [0, 1, 2]
    assert [next(ahead) for _ in range(4)] == [-1, -2, -3, -4]
    with pytest.raises(InputError, match="five"):
        next(ahead)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_closing_early_ends_the_thread() -> None:
    ahead = make_ahead(lambda i: i, range(10**9), depth=3)
    next(ahead)
    assert [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
    ahead.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("groups", [GROUPS, [[1]], UNEVEN])
def test_ranks_share_out_the_test_rows(tmp_path: Path, groups: list[list[int]], world_size: int) -> None:
    dataset = PuzzleDataset([write_original(tmp_path / "d", "test", groups)], "test")
    total = sum(size for group in groups for size in group)
    assert dataset.num_rows == total
    ranks = [list(dataset.test_batches(6, rank, world_size)) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {-(-total // 6)}
    seen: dict[int, int] = {}
    for name, batch, row in (item for batches in ranks for item in batches):
        assert name == "all"
        assert {len(a) for a in batch.values()} == {len(row)} == {6 // world_size}
        for i, index in enumerate(row.tolist()):
            if index >= 0:
                assert index not in seen
                seen[index] = row_numbers(batch)[i]
            else:
                assert (batch["inputs"][i] == 0).all()
                assert (batch["labels"][i] == -100).all()
                assert batch["puzzle_identifiers"][i] == 0
    assert seen == {row: row for row in range(total)}


def test_a_batch_that_cannot_be_shared_out(tmp_path: Path) -> None:
    dataset = PuzzleDataset([write_original(tmp_path / "d", "test", GROUPS)], "test")
    for size, world_size in ((6, 4), (0, 1)):
        with pytest.raises(InputError, match=f"a batch of {size} rows cannot be shared out over {world_size}"):
            dataset.test_batches(size, 0, world_size)
