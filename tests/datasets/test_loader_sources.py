"""The loader over several directories, subsets of them, and directories of the original."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from datasets.common import InputError
from datasets.puzzle_dataset import PuzzleDataset
from datasets.storage import Storage
from tests.datasets.toy_data import GROUPS, UNEVEN, row_numbers, write_arc, write_original


def test_identifiers_of_several_directories_never_collide(tmp_path: Path) -> None:
    first = write_original(tmp_path / "a", "train", GROUPS, num_identifiers=9)
    unnamed = write_original(tmp_path / "b", "train", GROUPS, value=30)
    second = write_original(tmp_path / "c", "train", UNEVEN, num_identifiers=8, value=60)
    dataset = PuzzleDataset([first, unnamed, second], "train")
    assert dataset.metadata.num_puzzle_identifiers == 1 + 8 + 0 + 7
    assert [source.id_offset for source in dataset.sources] == [0, 8, 8]
    assert dataset.metadata.sets == ["all", "all1", "all2"]
    assert dataset.metadata.total_groups == 12
    alone = {
        offset + row: batch["puzzle_identifiers"][0]
        for offset, path in ((0, first), (60, second))
        for row, batch in enumerate(_single_rows(PuzzleDataset([path], "train")))
    }
    seen: Counter[int] = Counter()
    for name, batch, index in dataset.test_batches(4, 0, 1):
        for i in np.flatnonzero(index >= 0):
            number, identifier = row_numbers(batch)[i], batch["puzzle_identifiers"][i]
            assert name == {0: "all", 1: "all1", 2: "all2"}[number // 30]
            assert identifier == (0 if name == "all1" else alone[number] + (8 if name == "all2" else 0))
            seen[number] += 1
    assert set(seen.values()) == {1}
    assert sum(seen.values()) == dataset.num_rows
    trained = Counter(n // 30 for s in range(50) for n in row_numbers(dataset.train_batch(s, 10, range(10))))
    assert all(trained[i] > 100 for i in range(3))


def _single_rows(dataset: PuzzleDataset) -> list[dict[str, np.ndarray]]:
    return [batch for _, batch, _ in dataset.test_batches(1, 0, 1)]


def test_directories_that_do_not_go_together(tmp_path: Path) -> None:
    first = write_original(tmp_path / "a", "train", GROUPS)
    second = write_original(tmp_path / "b", "train", GROUPS, vocab_size=13)
    with pytest.raises(InputError, match=r"vocab_size is 13 but .* has 12"):
        PuzzleDataset([first, second], "train")
    with pytest.raises(InputError, match="set data_paths"):
        PuzzleDataset([], "train")
    with pytest.raises(InputError, match=r"missing/train/dataset.json does not exist"):
        PuzzleDataset([tmp_path / "missing"], "train")


def test_a_dataset_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no row is left"):
        PuzzleDataset([write_original(tmp_path / "a", "train", [[0]])], "train")


def test_names_must_match_the_identifiers(tmp_path: Path) -> None:
    path = write_original(tmp_path / "a", "train", GROUPS, num_identifiers=8)
    metadata = json.loads((path / "train" / "dataset.json").read_text())
    (path / "train" / "dataset.json").write_text(json.dumps(metadata | {"num_puzzle_identifiers": 9}))
    with pytest.raises(InputError, match="has 8 names but num_puzzle_identifiers is 9"):
        PuzzleDataset([path], "train").sources[0].identifiers()
    (path / "identifiers.json").unlink()
    with pytest.raises(InputError, match=r"identifiers\.json does not exist"):
        PuzzleDataset([path], "train")


def test_rows_per_epoch_is_the_published_product(tmp_path: Path) -> None:
    dataset = PuzzleDataset([write_original(tmp_path / "d", "train", GROUPS)], "train")
    assert dataset.rows_per_epoch == pytest.approx(4 * 16 / 7)


TASKS = {"training": [f"t{i}" for i in range(20)], "evaluation": [f"e{i}" for i in range(20)]}


def base_names(dataset: PuzzleDataset, steps: int = 40) -> set[str]:
    names = dataset.sources[0].identifiers()
    batches = [dataset.train_batch(step, 32, range(32)) for step in range(steps)]
    return {names[i].split("|||")[0] for batch in batches for i in batch["puzzle_identifiers"]}


@pytest.mark.parametrize("storage", ["compact", "expanded"])
def test_a_subset_of_tasks_and_its_tests(tmp_path: Path, storage: Storage) -> None:
    path = write_arc(tmp_path / "d", TASKS, storage=storage)
    everything = PuzzleDataset([path], "train")
    assert everything.sources[0].task_names is None
    assert PuzzleDataset([path], "test", subset_of=everything).num_rows == 20 * 4
    train = PuzzleDataset([path], "train", seed=5, max_puzzles=12)
    test = PuzzleDataset([path], "test", seed=5, subset_of=train)
    kept = train.sources[0].task_names
    assert kept is not None
    assert len(kept) == 12
    assert base_names(train) == kept
    evaluated = {name for name in kept if name.startswith("e")}
    assert 0 < len(evaluated) < 12
    assert test.sources[0].task_names == evaluated
    assert (test.num_rows, test.metadata.total_groups) == (4 * len(evaluated), len(evaluated))
    names = test.sources[0].identifiers()
    tested = {
        names[i].split("|||")[0]
        for _, batch, row in test.test_batches(7, 0, 1)
        for i in batch["puzzle_identifiers"][row >= 0]
    }
    assert tested == evaluated
    assert train.metadata.num_puzzle_identifiers == test.metadata.num_puzzle_identifiers == 1 + 40 * 4
    assert (train.metadata.total_groups, train.metadata.total_puzzles) == (12, 48)
    assert train.rows_per_epoch == pytest.approx(12 * 3 - len(evaluated))

    nested = PuzzleDataset([path], "train", seed=5, max_puzzles=20).sources[0].task_names
    assert nested is not None
    assert kept < nested
    assert PuzzleDataset([path], "train", seed=6, max_puzzles=12).sources[0].task_names != kept
    fewer = PuzzleDataset([path], "test", seed=5, subset_of=train, max_puzzles=2)
    assert len(fewer.sources[0].task_names or ()) == 2
    assert (fewer.sources[0].task_names or set()) < evaluated
    hashes = {d.dataset_hash for d in (everything, train, test, fewer)}
    assert len(hashes) == 4
    assert train.dataset_hash == PuzzleDataset([path], "train", seed=5, max_puzzles=12).dataset_hash


def test_subsets_that_leave_nothing_or_nothing_out(tmp_path: Path) -> None:
    path = write_arc(tmp_path / "d", TASKS)
    all_of_it = PuzzleDataset([path], "train", max_puzzles=40)
    assert all_of_it.sources[0].task_names is None
    assert all_of_it.dataset_hash == PuzzleDataset([path], "train").dataset_hash
    with pytest.raises(InputError, match="max_puzzles is 0"):
        PuzzleDataset([path], "train", max_puzzles=0)
    train = next(
        d
        for d in (PuzzleDataset([path], "train", seed=s, max_puzzles=1) for s in range(50))
        if min(d.sources[0].task_names or ()).startswith("t")
    )
    with pytest.raises(InputError, match=r"d/test: no row is left; relax max_train_puzzles"):
        PuzzleDataset([path], "test", subset_of=train)


def test_unnamed_puzzles_are_tested_whole(tmp_path: Path) -> None:
    path = write_original(tmp_path / "d", "train", GROUPS)
    write_original(tmp_path / "e", "test", UNEVEN)
    train = PuzzleDataset([path], "train", max_puzzles=2)
    assert (train.metadata.total_groups, train.sources[0].task_names) == (2, None)
    test = PuzzleDataset([tmp_path / "e"], "test", subset_of=train)
    assert (test.num_rows, test.sources[0].task_names) == (13, None)


def test_tests_are_numbered_as_in_training(tmp_path: Path) -> None:
    paths = [write_arc(tmp_path / name, {"evaluation": [f"{name}{i}" for i in range(6)]}) for name in "ab"]
    train = PuzzleDataset(paths, "train")
    test = PuzzleDataset(paths[1:], "test", subset_of=train)
    assert [source.id_offset for source in test.sources] == [24]
    assert test.metadata.num_puzzle_identifiers == train.metadata.num_puzzle_identifiers == 49
    identifiers = np.concatenate([b["puzzle_identifiers"][r >= 0] for _, b, r in test.test_batches(5, 0, 1)])
    assert sorted(identifiers) == list(range(25, 49))
    copy = write_arc(tmp_path / "copy", {"evaluation": [f"b{i}" for i in range(6)]}, storage="expanded")
    assert PuzzleDataset([copy], "test", subset_of=train).sources[0].id_offset == 24
    stranger = write_arc(tmp_path / "c", {"evaluation": ["c0"]})
    with pytest.raises(InputError, match=r"c is not among the training data .* add it to data_paths"):
        PuzzleDataset([stranger], "test", subset_of=train)


def test_a_source_that_a_subset_leaves_out_has_no_evaluator(tmp_path: Path) -> None:
    paths = [write_arc(tmp_path / name, {"evaluation": [f"{name}{i}" for i in range(3)]}) for name in "ab"]
    train = PuzzleDataset(paths, "train", max_puzzles=1)
    assert len(train.sources) == 1
    test = PuzzleDataset(paths, "test", subset_of=train)
    assert [(s.path, s.id_offset, s.task_names) for s in test.sources] == [
        (s.path, s.id_offset, s.task_names) for s in train.sources
    ]


def test_the_hash_of_an_original_directory_follows_its_content(tmp_path: Path) -> None:
    hashes = [
        PuzzleDataset([write_original(tmp_path / str(i), "train", groups, value=value)], "train").dataset_hash
        for i, (groups, value) in enumerate([(GROUPS, 0), (GROUPS, 0), (GROUPS, 1), (UNEVEN, 0)])
    ]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
