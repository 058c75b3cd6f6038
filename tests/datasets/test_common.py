"""Symmetries, names, metadata files and counter-based draws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import datasets
from datasets.augment import counter_below, counter_hash, counter_shuffle, dihedral_source
from datasets.common import (
    InputError,
    augmented_name,
    dihedral_transform,
    inverse_dihedral_transform,
    load_identifiers,
    load_metadata,
    load_test_puzzles,
    run_builder,
    split_augmented_name,
)

GRID = np.array([[1, 2, 3], [4, 5, 6]])
SYMMETRIES = [
    [[1, 2, 3], [4, 5, 6]],
    [[3, 6], [2, 5], [1, 4]],
    [[6, 5, 4], [3, 2, 1]],
    [[4, 1], [5, 2], [6, 3]],
    [[3, 2, 1], [6, 5, 4]],
    [[4, 5, 6], [1, 2, 3]],
    [[1, 4], [2, 5], [3, 6]],
    [[6, 3], [5, 2], [4, 1]],
]
ORIGINAL_METADATA = {
    "pad_id": 0, "ignore_label_id": 0, "blank_identifier_id": 0, "vocab_size": 12, "seq_len": 900,
    "num_puzzle_identifiers": 5, "total_groups": 2, "mean_puzzle_examples": 3.5, "total_puzzles": 4,
    "sets": ["all"],
}  # fmt: skip


@pytest.mark.parametrize("tid", range(8))
def test_symmetries_are_the_written_out_ones(tid: int) -> None:
    assert dihedral_transform(GRID, tid).tolist() == SYMMETRIES[tid]
    assert inverse_dihedral_transform(dihedral_transform(GRID, tid), tid).tolist() == GRID.tolist()
    assert dihedral_transform(np.stack([GRID, -GRID]), tid)[1].tolist() == (-np.array(SYMMETRIES[tid])).tolist()


@pytest.mark.parametrize("tid", range(8))
def test_the_cell_map_is_the_same_symmetry(tid: int) -> None:
    rows, cols = np.array(SYMMETRIES[tid]).shape
    moved = [[GRID[dihedral_source(tid, r, c, 2, 3)] for c in range(cols)] for r in range(rows)]
    assert moved == SYMMETRIES[tid]


def test_a_symmetry_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="got 8"):
        dihedral_transform(GRID, 8)


@pytest.mark.parametrize("tid", range(8))
def test_names_carry_the_way_back(tid: int) -> None:
    colours = np.array([0, 3, 1, 2, 4, 9, 5, 6, 7, 8], np.uint8)
    grid = np.array([[0, 1, 2], [3, 4, 5], [9, 8, 7], [0, 0, 6]], np.uint8)
    name = augmented_name("ab12|x", tid, colours)
    assert name == f"ab12|x|||t{tid}|||0312495678"
    base, inverse = split_augmented_name(name)
    assert base == "ab12|x"
    np.testing.assert_array_equal(inverse(dihedral_transform(colours[grid], tid)), grid)


def test_a_plain_name_changes_nothing() -> None:
    base, inverse = split_augmented_name("007bbfb7")
    assert base == "007bbfb7"
    assert inverse(GRID) is GRID


@pytest.mark.parametrize("suffix", ["|||t8|||0123456789", "|||t1|||012345678", "|||t1|||0012345678", "|||t1"])
def test_a_bad_name_is_refused(suffix: str) -> None:
    with pytest.raises(InputError, match="ab12"):
        split_augmented_name("ab12" + suffix)


def test_metadata_of_the_original_loads(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(ORIGINAL_METADATA | {"some_other_key": 1}))
    metadata = load_metadata(tmp_path)
    assert metadata.model_dump(include=set(ORIGINAL_METADATA)) == ORIGINAL_METADATA
    assert (metadata.storage, metadata.kind, metadata.dataset_hash) == ("expanded", None, None)


@pytest.mark.parametrize("key", sorted(ORIGINAL_METADATA.keys() - {"total_puzzles"}))
def test_missing_and_mistyped_metadata_keys_are_named(tmp_path: Path, key: str) -> None:
    path = tmp_path / "dataset.json"
    for content in (ORIGINAL_METADATA | {key: "x y"}, {k: v for k, v in ORIGINAL_METADATA.items() if k != key}):
        path.write_text(json.dumps(content))
        with pytest.raises(InputError) as error:
            load_metadata(tmp_path)
        assert f"{path}: key {key}:" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[1, 2]", b"7"])
@pytest.mark.parametrize(
    ("load", "name"),
    [(load_metadata, "dataset.json"), (load_identifiers, "identifiers.json"), (load_test_puzzles, "test_puzzles.json")],
)  # fmt: skip
def test_files_that_are_not_what_they_should_be(tmp_path: Path, content: bytes, load, name: str) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        load(tmp_path)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_test_puzzles_name_the_task(tmp_path: Path) -> None:
    pair = {"input": [[1]], "output": [[2]]}
    content = {"good": {"train": [pair], "test": [{"input": [[1]]}]}, "bad": {"train": [pair], "test": [[[1]]]}}
    (tmp_path / "test_puzzles.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="task bad has no list of test pairs"):
        load_test_puzzles(tmp_path)
    (tmp_path / "test_puzzles.json").write_text(json.dumps({"good": content["good"]}))
    assert load_test_puzzles(tmp_path) == {"good": content["good"]}


def test_a_builder_reports_user_errors_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise InputError("--x is wrong")

    assert run_builder(fail) == 2
    assert capsys.readouterr().err == "error: --x is wrong\n"
    assert run_builder(lambda: None) == 0


def test_the_package_explains_whose_name_it_has() -> None:
    with pytest.raises(AttributeError, match=r"load_dataset.*not the Hugging Face library"):
        datasets.load_dataset  # noqa: B018


def test_draws_depend_on_every_counter_and_are_uniform() -> None:
    base = (7, 1, 2, 3)
    changed = [tuple(v + (i == j) for j, v in enumerate(base)) for i in range(4)]
    assert len({counter_hash(*counters) for counters in [base, *changed]}) == 5
    assert counter_hash(np.uint64(2**64 - 1), -1, 2, 3) != counter_hash(np.uint64(2**64 - 2), -1, 2, 3)
    draws = np.array([counter_below(np.uint64(2**63), 5, i, 0, 9) for i in range(18_000)])
    counts = np.bincount(draws, minlength=9)
    assert counts.size == 9
    chi_square = ((counts - 2000) ** 2 / 2000).sum()
    assert chi_square < 26.1  # 0.999 quantile at 8 degrees of freedom


def test_shuffles_are_uniform_permutations() -> None:
    seen: dict[tuple[int, ...], int] = {}
    for i in range(6000):
        values = np.arange(3)
        assert counter_shuffle(values, 1, 2, i, 10) == 12
        seen[tuple(values.tolist())] = seen.get(tuple(values.tolist()), 0) + 1
    assert len(seen) == 6
    assert sum((count - 1000) ** 2 / 1000 for count in seen.values()) < 20.5  # 0.999 quantile, 5 degrees
