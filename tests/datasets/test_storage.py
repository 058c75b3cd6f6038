"""Both storages hold the same rows; directories appear whole or not at all; faults are found on opening."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import datasets.storage
from datasets.arc import Task, parse_task
from datasets.arc_augment import plan_splits
from datasets.common import InputError, load_metadata
from datasets.puzzle_dataset import PuzzleDataset
from datasets.puzzle_set import PuzzleSet
from datasets.storage import BuildSummary, Kind, SplitPlan, Storage, make_tokens, write_dataset

SIDE = 5


def toy_splits(seed: int = 0) -> tuple[list[str], dict[str, SplitPlan]]:
    rng = np.random.default_rng(1)

    def task(name: str, pairs: int) -> Task:
        shapes = rng.integers(1, 5, (pairs, 4))
        grids = [
            {"input": rng.integers(0, 10, s[:2]).tolist(), "output": rng.integers(0, 10, s[2:]).tolist()}
            for s in shapes
        ]
        return parse_task(name, {"train": grids[:-1], "test": grids[-1:]}, "toy")

    subsets = {"training": [task(f"t{i}", 2 + i) for i in range(4)], "evaluation": [task("e", 3), task("f", 5)]}
    return plan_splits(subsets, "evaluation", num_aug=7, seed=seed)


def write(out: Path, storage: Storage = "compact", overwrite: bool = False, seed: int = 0) -> BuildSummary:
    identifiers, splits = toy_splits(seed)
    return write_dataset(
        out,
        identifiers=identifiers,
        test_puzzles={},
        splits=splits,
        kind="arc",
        grid=(SIDE, SIDE),
        box=None,
        vocab_size=12,
        seq_len=SIDE * SIDE,
        storage=storage,
        provenance={"made by": "a test"},
        overwrite=overwrite,
    )


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_both_storages_give_the_same_rows_and_have_the_same_hash(tmp_path: Path) -> None:
    compact, expanded = write(tmp_path / "c"), write(tmp_path / "x", "expanded")
    assert compact.dataset_hash == expanded.dataset_hash
    assert compact.rows == expanded.rows == {"train": 8 * (2 + 3 + 4 + 5 + 2 + 4), "test": 8 * 2}
    assert compact.dataset_hash != write(tmp_path / "other", seed=1).dataset_hash
    for split in ("train", "test"):
        sets = [PuzzleSet(tmp_path / d / split, "all", load_metadata(tmp_path / d / split)) for d in "cx"]
        row = np.random.default_rng(0).permutation(sets[0].num_rows)
        puzzle = np.searchsorted(sets[0].puzzle_indices, row, side="right") - 1
        example = row - sets[0].puzzle_indices[puzzle]
        for made, stored in zip(*(s.tokens(puzzle, example) for s in sets), strict=True):
            np.testing.assert_array_equal(made, stored)


def test_expanded_arrays_are_the_originals(tmp_path: Path) -> None:
    write(tmp_path / "x", "expanded")
    _, splits = toy_splits()
    arrays = {p.stem: np.load(p, allow_pickle=False) for p in (tmp_path / "x" / "train").glob("*.npy")}
    assert {name: (a.dtype.name, a.shape) for name, a in arrays.items()} == {
        "all__inputs": ("uint8", (160, 25)),
        "all__labels": ("uint8", (160, 25)),
        "all__puzzle_identifiers": ("int32", (48,)),
        "all__puzzle_indices": ("int32", (49,)),
        "all__group_indices": ("int32", (7,)),
    }
    for name in ("puzzle_identifiers", "puzzle_indices", "group_indices"):
        np.testing.assert_array_equal(arrays[f"all__{name}"], getattr(splits["train"], name))
    for puzzle in (0, 17, 47):
        first, end = arrays["all__puzzle_indices"][puzzle : puzzle + 2]
        example = np.arange(end - first)
        inputs, labels = make_tokens("arc", 25, splits["train"], np.full(end - first, puzzle), example)
        np.testing.assert_array_equal(arrays["all__inputs"][first:end], inputs)
        np.testing.assert_array_equal(arrays["all__labels"][first:end], labels)


def test_metadata_counts_what_was_written(tmp_path: Path) -> None:
    summary = write(tmp_path / "c")
    metadata = load_metadata(tmp_path / "c" / "train")
    assert (metadata.total_groups, metadata.total_puzzles, metadata.num_puzzle_identifiers) == (6, 48, 49)
    assert metadata.mean_puzzle_examples == pytest.approx(20 / 6)
    assert (metadata.storage, metadata.dataset_hash) == ("compact", summary.dataset_hash)
    assert summary.bytes == sum(len(content) for content in tree(tmp_path / "c").values())
    assert "train: 6 groups, 48 puzzles, 160 rows" in summary.describe(1.0)


def test_an_existing_dataset_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    write(tmp_path / "d")
    before = tree(tmp_path / "d")
    with pytest.raises(InputError, match="not empty; add --overwrite"):
        write(tmp_path / "d", seed=1)
    assert tree(tmp_path / "d") == before
    write(tmp_path / "d", seed=1, overwrite=True)
    assert tree(tmp_path / "d").keys() == before.keys()
    assert tree(tmp_path / "d") != before
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        write(tmp_path / "file", overwrite=True)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "empty", "file"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_build_leaves_nothing_and_keeps_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    write(tmp_path / "d")
    before = tree(tmp_path / "d")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(datasets.storage, "_write_all_rows", fail)
    expected = InputError if isinstance(error, OSError) else KeyboardInterrupt
    for out in ("d", "new"):
        with pytest.raises(expected):
            write(tmp_path / out, "expanded", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    assert tree(tmp_path / "d") == before


def test_a_failed_replacement_puts_the_old_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "d")
    before = tree(tmp_path / "d")
    replace = os.replace

    def refuse_new(source: Path, target: Path) -> None:
        if ".tmp-" in str(source):
            raise OSError(errno.EIO, "I/O error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse_new)
    with pytest.raises(InputError, match="cannot be written: I/O error"):
        write(tmp_path / "d", seed=1, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    assert tree(tmp_path / "d") == before


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    write(folder / "compact")
    write(folder / "expanded", "expanded")
    return folder


COMPACT_FILES = (
    "puzzle_identifiers", "puzzle_indices", "group_indices", "base_cells", "base_offsets", "base_shapes",
    "base_group_pairs", "plan_tid", "plan_colours",
)  # fmt: skip
EXPANDED_FILES = ("puzzle_identifiers", "puzzle_indices", "group_indices", "inputs", "labels")
FILES = [("compact", name) for name in COMPACT_FILES] + [("expanded", name) for name in EXPANDED_FILES]


def delete(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def truncate_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def be_empty(path: Path) -> None:
    path.write_bytes(b"")


def be_a_pickle(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def be_an_archive(path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.arange(3))
    path.write_bytes(buffer.getvalue())


def change_type(path: Path) -> None:
    np.save(path, np.load(path).astype(np.float32))


def drop_the_last(path: Path) -> None:
    np.save(path, np.load(path)[:-1])


DAMAGES = (delete, truncate, truncate_header, be_empty, be_a_pickle, be_an_archive, change_type, drop_the_last)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("storage", "name"), FILES)
def test_damaged_files_are_named(
    tmp_path: Path, built: Path, storage: str, name: str, damage: Callable[[Path], None]
) -> None:
    shutil.copytree(built / storage, tmp_path / "d")
    damage(tmp_path / "d" / "train" / f"all__{name}.npy")
    with pytest.raises(InputError) as error:
        PuzzleDataset([tmp_path / "d"], "train")
    message = str(error.value)
    assert "\n" not in message
    if not (damage is drop_the_last and name in ("base_cells", "base_group_pairs", "puzzle_indices", "group_indices")):
        assert f"all__{name}.npy" in message
    assert "rebuild" in message


VALUES = [
    ("compact", "base_cells", 3, 10, "base_cells.npy entry 3 is not a colour"),
    ("compact", "base_offsets", 2, 10**6, "base_offsets.npy entry 2 leaves the cells"),
    ("compact", "base_offsets", 2, -1, "base_offsets.npy entry 2 leaves the cells"),
    ("compact", "base_shapes", (4, 1), 6, "base_shapes.npy entry 4 is larger than the canvas"),
    ("compact", "base_group_pairs", 0, 1, "base_group_pairs.npy must begin with 0"),
    ("compact", "plan_tid", 7, 8, "plan_tid.npy entry 7 is no symmetry"),
    ("compact", "plan_colours", (5, 3), 0, "plan_colours.npy entry 5 is no permutation"),
    ("compact", "puzzle_identifiers", 9, 49, "puzzle_identifiers.npy entry 9 is outside 0..48"),
    ("expanded", "puzzle_identifiers", 9, -1, "puzzle_identifiers.npy entry 9 is outside 0..48"),
    ("expanded", "puzzle_indices", 4, 99, "puzzle_indices.npy entry 5 is below"),
    ("expanded", "puzzle_indices", 0, 1, "puzzle_indices.npy must begin with 0"),
    ("expanded", "group_indices", 2, 8, "group_indices.npy entry 2 is not above"),
    ("expanded", "inputs", (11, 24), 12, "inputs.npy: row 11, cell 24 holds token 12"),
    ("expanded", "labels", (159, 0), 255, "labels.npy: row 159, cell 0 holds token 255"),
]


@pytest.mark.parametrize(("storage", "name", "index", "value", "message"), VALUES)
def test_impossible_values_are_named(
    tmp_path: Path, built: Path, storage: str, name: str, index: int, value: int, message: str
) -> None:
    shutil.copytree(built / storage, tmp_path / "d")
    path = tmp_path / "d" / "train" / f"all__{name}.npy"
    array = np.load(path)
    array[index] = value
    np.save(path, array)
    with pytest.raises(InputError) as error:
        PuzzleDataset([tmp_path / "d"], "train")
    assert message in str(error.value)


def test_tokens_that_the_first_look_skips_are_found_when_read(
    tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.validation._MAX_CHECKED_CELLS", 1000)  # every fifth row of 160
    shutil.copytree(built / "expanded", tmp_path / "d")
    path = tmp_path / "d" / "train" / "all__inputs.npy"
    array = np.load(path)
    array[101, 7] = 200
    np.save(path, array)
    dataset = PuzzleDataset([tmp_path / "d"], "train")
    with pytest.raises(InputError, match="row 101, cell 7 holds token 200"):
        list(dataset.test_batches(32, 0, 1))
    array[101, 7], array[100, 7] = 0, 200
    np.save(path, array)
    with pytest.raises(InputError, match="row 100, cell 7 holds token 200"):
        PuzzleDataset([tmp_path / "d"], "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seq_len": 36}, "expected integers"),
        ({"total_groups": 7}, "total_groups is 7"),
        ({"sets": []}, "sets is empty"),
        ({"sets": ["other"]}, "other__puzzle_identifiers.npy does not exist"),
        ({"blank_identifier_id": 1}, "blank_identifier_id must be 0"),
        ({"vocab_size": 5}, "outside 0..4"),
        ({"storage": "zip"}, "key storage"),
    ],
)
def test_metadata_that_contradicts_the_arrays(
    tmp_path: Path, built: Path, change: dict[str, object], message: str
) -> None:
    shutil.copytree(built / "expanded", tmp_path / "d")
    path = tmp_path / "d" / "train" / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError) as error:
        PuzzleDataset([tmp_path / "d"], "train")
    assert message in str(error.value)


SUDOKU = SplitPlan(
    puzzle_identifiers=np.zeros(2, np.int32),
    puzzle_indices=np.arange(3),
    group_indices=np.array([0, 2]),
    base={"inputs": np.ones((1, 16), np.uint8), "labels": np.full((1, 16), 5, np.uint8)},
    plan={"seed": np.array([0], np.uint64), "box": np.array([2, 2])},
)
MAZE = replace(
    SUDOKU, base={"inputs": np.array([[3, 2, 1, 4]], np.uint8), "labels": np.array([[3, 5, 1, 4]], np.uint8)}, plan={}
)
PLAN_FAULTS = [
    (SUDOKU, {"plan": {**SUDOKU.plan, "box": np.array([2, 3])}}, "plan_box.npy holds [2, 3]"),
    (SUDOKU, {"plan": {**SUDOKU.plan, "seed": np.zeros(2, np.uint64)}}, "plan_seed.npy is uint64 [2]"),
    (SUDOKU, {"plan": {"seed": SUDOKU.plan["seed"]}}, "plan_box.npy does not exist"),
    (SUDOKU, {"base": {**SUDOKU.base, "labels": np.full((1, 16), 6, np.uint8)}}, "row 0, cell 0 holds token 6"),
    (SUDOKU, {"base": {**SUDOKU.base, "inputs": np.ones((2, 16), np.uint8)}}, "base_inputs.npy is uint8 [2, 16]"),
    (SUDOKU, {"puzzle_indices": np.array([0, 1, 3])}, "puzzle_indices.npy entry 2 does not leave"),
    (MAZE, {"base": {**MAZE.base, "inputs": MAZE.base["labels"] % 3}}, "base_inputs.npy entry 0 has not exactly one"),
    (MAZE, {"group_indices": np.array([0, 9])}, "group_indices.npy"),
]


@pytest.mark.parametrize(("plan", "change", "message"), PLAN_FAULTS, ids=[fault[2] for fault in PLAN_FAULTS])
def test_faulty_plans_of_the_other_kinds_are_named(
    tmp_path: Path, plan: SplitPlan, change: dict[str, Any], message: str
) -> None:
    kind: Kind = "maze" if plan is MAZE else "sudoku"
    if "group_indices" in change:
        change = change | {"puzzle_indices": np.arange(10), "puzzle_identifiers": np.zeros(9, np.int32)}
    for name, split in (("good", plan), ("bad", replace(plan, **change))):
        write_dataset(
            tmp_path / name, identifiers=["<blank>"], test_puzzles=None, splits={"train": split}, kind=kind,
            grid=(2, 2), box=None, vocab_size=6, seq_len=plan.base["inputs"].shape[1], storage="compact",
            provenance={}, overwrite=False,
        )  # fmt: skip
    assert PuzzleDataset([tmp_path / "good"], "train").num_rows == 2
    with pytest.raises(InputError) as error:
        PuzzleDataset([tmp_path / "bad"], "train")
    assert message in str(error.value)
