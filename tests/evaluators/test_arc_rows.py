"""Rows back to grids, against brute force and plain numpy."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from datasets.common import (
    DIHEDRAL_TRANSFORMS,
    InputError,
    augmented_name,
    dihedral_transform,
    split_augmented_name,
)
from evaluators.arc_names import read_names
from evaluators.arc_rows import crop, find_corners, grid_keys, grid_to_key, is_empty, key_to_grid

IDENTITY = np.arange(10, dtype=np.uint8)[None]


def place(grid: np.ndarray, side: int, top: int = 0, left: int = 0) -> np.ndarray:
    """A token row as the builders write it: the grid at (top, left), end markers below and to the right."""
    canvas = np.zeros((side, side), np.int32)
    height, width = grid.shape
    if top + height < side:
        canvas[top + height, left : left + width] = 1
    if left + width < side:
        canvas[top : top + height, left + width] = 1
    canvas[top : top + height, left : left + width] = grid + 2
    return canvas.ravel()


def largest_rectangle(tokens: np.ndarray) -> tuple[int, int]:
    """Brute force: every anchored rectangle, the first of the largest in order of height."""
    best = (0, 0)
    rows, columns = tokens.shape
    for height, width in itertools.product(range(1, rows + 1), range(1, columns + 1)):
        cells = tokens[:height, :width]
        if ((cells >= 2) & (cells <= 11)).all() and height * width > best[0] * best[1]:
            best = (height, width)
    return best


@pytest.mark.parametrize("density", [0.02, 0.1, 0.3])
def test_crop_agrees_with_brute_force(density: float) -> None:
    rng = np.random.default_rng(7)
    for _ in range(300):
        side = int(rng.integers(1, 9))
        tokens = rng.integers(2, 12, (side, side))
        strange = rng.random((side, side)) < density
        tokens[strange] = rng.choice([0, 1, -100, 12, 40], strange.sum())
        top, left = rng.integers(0, side, 2).tolist()
        assert crop(tokens.ravel(), 0, side) == largest_rectangle(tokens)
        assert crop(tokens.ravel(), top * side + left, side) == largest_rectangle(tokens[top:, left:])


def test_crop_of_equal_areas_is_the_flattest() -> None:
    tokens = np.array([[2, 2, 2, 2], [2, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert crop(tokens.ravel(), 0, 4) == (1, 4)


@pytest.mark.parametrize("tid", range(DIHEDRAL_TRANSFORMS))
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 2), (4, 6), (7, 7)])
def test_augmentation_is_undone(tid: int, shape: tuple[int, int], tmp_path: Path) -> None:
    rng = np.random.default_rng(tid)
    side = 9
    for top, left in [(0, 0), (2, 1)]:
        grid = rng.integers(0, 10, shape)
        colours = np.concatenate([[0], 1 + rng.permutation(9)])
        name = augmented_name("task", tid, colours)
        names = read_names(["<blank>", name], tmp_path)
        row = place(dihedral_transform(colours[grid], tid), side, top, left)[None]
        keys = grid_keys(row, find_corners(row, side), side, names.dihedral[1:], names.inverse_colours[1:])
        assert keys == [grid_to_key(grid.tolist())]
        assert key_to_grid(keys[0]) == grid.tolist()

        base, undo = split_augmented_name(name)
        assert names.base[1] == base
        assert np.array_equal(undo(dihedral_transform(colours[grid], tid)), grid)


def test_prediction_is_read_at_the_corner_of_its_input() -> None:
    side = 6
    inputs = place(np.full((2, 2), 3), side, top=1, left=2)[None]
    answer = np.arange(6).reshape(2, 3)
    prediction = place(answer, side, top=1, left=2)
    prediction[:2] = 7  # what a model says before the corner is never trained, so it must not matter
    corners = find_corners(inputs, side)
    assert corners.tolist() == [1 * side + 2]
    keys = grid_keys(prediction[None], corners, side, np.zeros(1, np.int64), IDENTITY)
    assert keys == [grid_to_key(answer.tolist())]


@pytest.mark.parametrize("tid", range(DIHEDRAL_TRANSFORMS))
def test_rows_without_a_grid_are_empty(tid: int) -> None:
    side = 5
    rows = np.stack([np.zeros(side * side, np.int32), np.full(side * side, 12, np.int32)])
    keys = grid_keys(rows, find_corners(rows, side), side, np.full(2, tid), IDENTITY.repeat(2, axis=0))
    assert all(is_empty(key) and key_to_grid(key) == [] for key in keys)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_rows_of_any_integer_type(dtype: type) -> None:
    row: np.ndarray = place(np.array([[1, 2], [3, 4]]), 4)[None].astype(dtype)
    assert grid_keys(row, find_corners(row, 4), 4, np.zeros(1, np.int64), IDENTITY) == [b"\x02\x02\1\2\3\4"]


def test_rows_of_another_size_are_refused() -> None:
    row = np.zeros((1, 12), np.int32)
    with pytest.raises(ValueError, match="12 tokens do not hold a 4x4 grid"):
        grid_keys(row, np.zeros(1, np.int64), 4, np.zeros(1, np.int64), IDENTITY)


def test_names_agree_with_the_single_reader(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ["<blank>", "task", "Odd|||Name|||t3|||0213456789"]
    names += [augmented_name("a", int(rng.integers(8)), np.r_[0, 1 + rng.permutation(9)]) for _ in range(50)]
    read = read_names(names, tmp_path)
    grid = rng.integers(0, 10, (3, 4))
    for index, name in enumerate(names):
        base, undo = split_augmented_name(name)
        assert read.base[index] == base
        row = place(grid, 5)[None]
        key = grid_keys(row, np.zeros(1, np.int64), 5, read.dihedral[[index]], read.inverse_colours[[index]])
        assert key == [grid_to_key(undo(grid).tolist())]


@pytest.mark.parametrize(
    "name",
    [
        "a|||t8|||0123456789",
        "a|||t1|||012345678",
        "a|||t1|||0123456788",
        "a|||t1|||012345678x",
        "a|||t1|||012345678é",
        "a|||0123456789",
        "a|||x|||0123456789",
    ],
)
def test_bad_names_are_refused_by_index(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"identifiers\.json: name 2 is"):
        read_names(["<blank>", "fine", name], tmp_path)
