"""Labels, row maker, generator and classes of mazes, against plain Python."""

from __future__ import annotations

import numpy as np
import pytest

from datasets.common import DIHEDRAL_TRANSFORMS, InputError, dihedral_transform
from datasets.maze import (
    WALL,
    class_keys,
    default_min_path,
    generate,
    make_rows,
    maze_plan,
    maze_size,
    shortest_paths,
)
from datasets.storage import RowIndex
from tests.datasets.maze_oracle import picture, solved, tokens


@pytest.mark.parametrize(
    ("maze", "label", "length"),
    [
        ("S   |    |    |   G", "S   |o   |o   |oooG", 7),  # down comes first
        ("   G|    |    |S   ", "   G|   o|   o|Sooo", 7),  # right before up
        ("   S|    |    |G   ", "   S|   o|   o|Gooo", 7),  # down before left
        ("G   |    |    |   S", "G   |o   |o   |oooS", 7),  # left before up
        ("S#  | # #| # G|    ", "S#  |o# #|o# G|oooo", 8),
        ("SG| #", "SG| #", 2),
        ("S#|#G", "S#|#G", 0),
    ],
)
def test_label_follows_the_order_down_left_right_up(maze: str, label: str, length: int) -> None:
    labels, lengths = shortest_paths(tokens(maze)[None])
    assert picture(labels[0]) == label
    assert lengths[0] == length


def test_labels_agree_with_plain_breadth_first_search() -> None:
    mazes = generate(9, seed=3, start=0, stop=400, min_path=2).questions
    labels, lengths = shortest_paths(mazes)
    assert len(mazes) > 100
    for maze, label, length in zip(mazes, labels, lengths, strict=True):
        expected = solved(maze)
        assert expected is not None
        assert picture(label) == picture(expected)
        assert length == (label == 5).sum() + 2


def test_rows_are_dihedral_images_with_labels_of_their_own() -> None:
    mazes = generate(7, seed=0, start=0, stop=300, min_path=8)
    groups = len(mazes.questions)
    assert groups > 10
    plan = maze_plan(mazes.questions, mazes.answers, augment=True)
    assert plan.group_indices[-1] == groups * DIHEDRAL_TRANSFORMS
    group = np.repeat(np.arange(groups), DIHEDRAL_TRANSFORMS)
    variant = np.tile(np.arange(DIHEDRAL_TRANSFORMS), groups)
    inputs = np.zeros((len(group), 49), np.uint8)
    labels = np.zeros_like(inputs)
    make_rows(plan.base, plan.plan, RowIndex(group, group, variant, np.zeros_like(group)), inputs, labels)
    turned_labels = 0
    for row, (g, tid) in enumerate(zip(group, variant, strict=True)):
        assert (inputs[row] == dihedral_transform(mazes.questions[g].reshape(7, 7), tid).ravel()).all()
        assert (labels[row] == solved(inputs[row])).all()
        turned_labels += (labels[row] == dihedral_transform(mazes.answers[g].reshape(7, 7), tid).ravel()).all()
    assert groups <= turned_labels < len(group)


def test_unaugmented_row_keeps_the_label_it_was_given() -> None:
    maze, other_path = tokens("S   |    |    |   G"), tokens("Sooo|   o|   o|   G")
    plan = maze_plan(maze[None], other_path[None], augment=False)
    zero = np.zeros(1, np.int64)
    labels = np.zeros((1, 16), np.uint8)
    make_rows(plan.base, plan.plan, RowIndex(zero, zero, zero, zero), labels.copy(), labels)
    assert (labels[0] == other_path).all()


def test_generated_mazes_have_the_path_and_the_walls_asked_for() -> None:
    mazes = generate(12, seed=1, start=0, stop=20_000, min_path=28)
    assert len(mazes.questions) > 20
    assert mazes.difficulty.min() >= 28
    for maze, label, length in zip(mazes.questions, mazes.answers, mazes.difficulty, strict=True):
        assert (label == solved(maze)).all()
        assert length == (label == 5).sum() + 2
        assert ((maze == 3).sum(), (maze == 4).sum()) == (1, 1)
    every_maze = generate(12, seed=1, start=0, stop=3000, min_path=2).questions
    density = (every_maze == WALL).mean(axis=1)
    assert density.min() > 0.3 - 3 / 144
    assert density.max() < 0.5
    corners = np.isin(every_maze[:, [0, 11, 132, 143]], (3, 4)).mean()
    assert corners == pytest.approx(2 / 144, rel=0.5)


def test_an_attempt_depends_on_seed_and_number_alone() -> None:
    whole = generate(10, seed=0, start=0, stop=3000, min_path=10)
    head = generate(10, seed=0, start=0, stop=1234, min_path=10)
    tail = generate(10, seed=0, start=1234, stop=3000, min_path=10)
    assert (np.concatenate([head.questions, tail.questions]) == whole.questions).all()
    other = generate(10, seed=1, start=0, stop=3000, min_path=10).questions
    assert not {maze.tobytes() for maze in other} & {maze.tobytes() for maze in whole.questions}


def test_keys_are_equal_for_turned_and_mirrored_mazes_only() -> None:
    mazes = generate(8, seed=2, start=0, stop=500, min_path=5).questions
    keys = class_keys(mazes)
    assert len(np.unique(keys)) == len(np.unique(mazes, axis=0)) == len(mazes)
    for tid in range(DIHEDRAL_TRANSFORMS):
        turned = dihedral_transform(mazes.reshape(-1, 8, 8), tid).reshape(-1, 64)
        assert (class_keys(np.ascontiguousarray(turned)) == keys).all()


def test_default_path_is_that_of_maze_hard_and_shorter_for_small_mazes() -> None:
    assert [default_min_path(size) for size in (3, 10, 20, 30, 60)] == [3, 21, 60, 110, 220]


def test_maze_size_refuses_what_is_no_square() -> None:
    assert maze_size(900) == 30
    for cells in (1, 899):
        with pytest.raises(InputError, match=str(cells)):
            maze_size(cells)
