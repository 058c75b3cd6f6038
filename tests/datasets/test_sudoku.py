"""Solver, generator, classes and augmentation of Sudoku, against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from datasets.common import InputError
from datasets.generation import Puzzles, generate_splits
from datasets.storage import RowIndex
from datasets.sudoku import BLANK_TOKEN, board_size, make_rows, puzzle_plan
from datasets.sudoku_classes import class_keys
from datasets.sudoku_generator import generate
from datasets.sudoku_solver import board, solve
from tests.datasets.sudoku_oracle import BOXES, orbit, random_symmetry, solutions

EASY = "530070000600195000098000060800060003400803001700020006060000280000419005000080079"
EASY_SOLUTION = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
HARD = "800000000003600000070090200050007000000045700000100030001000068008500010090000400"
HARD_SOLUTION = "812753649943682175675491283154237896369845721287169534521974368438526917796318452"


def digits(text: str) -> np.ndarray:
    return np.array([int(character) for character in text], np.uint8)


def minimal(size: int, count: int, seed: int = 0) -> Puzzles:
    return generate(board(size), seed=seed, start=0, stop=count, clues=(0, 0), min_guesses=0)


def rows_of(
    puzzles: np.ndarray, answers: np.ndarray, size: int, group: np.ndarray, variant: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    plan = puzzle_plan(puzzles, answers, box=BOXES[size], num_aug=int(variant.max(initial=0)), seed=seed)
    inputs = np.empty((len(group), puzzles.shape[1]), np.uint8)
    labels = np.empty_like(inputs)
    make_rows(plan.base, plan.plan, RowIndex(group, group, variant, np.zeros_like(group)), inputs, labels)
    return inputs - BLANK_TOKEN, labels - BLANK_TOKEN


def test_solver_knows_published_puzzles() -> None:
    solved = solve(np.stack([digits(EASY), digits(HARD)]), board(9))
    assert solved.counts.tolist() == [1, 1]
    assert solved.solutions[0].tolist() == digits(EASY_SOLUTION).tolist()
    assert solved.solutions[1].tolist() == digits(HARD_SOLUTION).tolist()
    assert solved.guesses[0] == 0
    assert solved.guesses[1] > 10


@pytest.mark.parametrize(("size", "given", "count"), [(4, 5, 150), (4, 7, 150), (6, 14, 60), (6, 17, 60)])
def test_solver_counts_like_brute_force(size: int, given: int, count: int) -> None:
    """Random subsets of a grid, some with a wrong clue: no, one or several solutions."""
    random = np.random.default_rng(size * 100 + given)
    answers = minimal(size, count).answers
    puzzles = np.zeros_like(answers)
    for row in range(count):
        cells = random.choice(size * size, given, replace=False)
        puzzles[row, cells] = answers[row, cells]
        if row % 3 == 0:
            puzzles[row, cells[0]] = puzzles[row, cells[0]] % size + 1
    solved = solve(puzzles, board(size))
    expected = [solutions(puzzle.tolist(), size, limit=2) for puzzle in puzzles]
    assert solved.counts.tolist() == [len(found) for found in expected]
    assert len(set(solved.counts.tolist())) == 3
    for row in np.flatnonzero(solved.counts == 1).tolist():
        assert solved.solutions[row].tolist() == expected[row][0]


def test_solver_sees_contradictions_and_empty_grids() -> None:
    twice = digits("11" + "0" * 14)
    solved = solve(np.stack([twice, np.zeros(16, np.uint8)]), board(4))
    assert solved.counts.tolist() == [0, 2]
    assert solved.solutions[0].tolist() == [0] * 16


@pytest.mark.parametrize(("size", "count"), [(4, 60), (6, 12), (9, 1)])
def test_generated_puzzles_have_one_solution_and_no_spare_clue(size: int, count: int) -> None:
    puzzles = minimal(size, count)
    for question, answer in zip(puzzles.questions.tolist(), puzzles.answers.tolist(), strict=True):
        assert solutions(question, size, limit=2) == [answer]
        for cell in [cell for cell, digit in enumerate(question) if digit][:6]:
            assert len(solutions([*question[:cell], 0, *question[cell + 1 :]], size, limit=2)) == 2


def test_generated_puzzles_keep_the_clues_asked_for() -> None:
    puzzles = generate(board(6), seed=0, start=0, stop=200, clues=(16, 18), min_guesses=0)
    clues = (puzzles.questions > 0).sum(axis=1)
    assert set(clues.tolist()) == {16, 17, 18}


def test_generated_puzzles_climb_to_the_difficulty_asked_for() -> None:
    puzzles = generate(board(6), seed=0, start=0, stop=30, clues=(0, 0), min_guesses=4)
    assert len(puzzles.questions) > 20
    assert puzzles.difficulty.min() >= 4
    solved = solve(puzzles.questions, board(6))
    assert (solved.counts == 1).all()
    assert (solved.solutions == puzzles.answers).all()
    assert (solved.guesses == puzzles.difficulty).all()
    assert np.median(minimal(6, 30).difficulty) == 0


def test_an_attempt_depends_on_seed_and_number_alone() -> None:
    whole = minimal(9, 10)
    part = generate(board(9), seed=0, start=6, stop=10, clues=(0, 0), min_guesses=0)
    assert (part.questions == whole.questions[6:]).all()
    assert (minimal(9, 10, seed=1).questions != whole.questions).any(axis=1).all()


def test_minimal_4x4_puzzles_fall_into_the_36_known_classes() -> None:
    puzzles = minimal(4, 4000)
    clues = (puzzles.questions > 0).sum(axis=1)
    by_clues = [len(np.unique(puzzles.keys[clues == count])) for count in (4, 5, 6)]
    assert by_clues == [13, 22, 1]
    assert set(clues.tolist()) == {4, 5, 6}


def test_full_grids_fall_into_the_known_classes() -> None:
    all_4x4 = np.array(solutions([0] * 16, 4), np.uint8)
    assert len(all_4x4) == 288
    assert len(np.unique(class_keys(all_4x4, all_4x4, board(4)))) == 2
    many_6x6 = minimal(6, 1500).answers
    assert len(np.unique(class_keys(many_6x6, many_6x6, board(6)))) <= 49


def test_equivalent_puzzles_and_only_they_have_equal_keys() -> None:
    puzzles = minimal(4, 30).questions
    orbits = {min(orbit(puzzle, 4)) for puzzle in puzzles}
    assert len(np.unique(class_keys(puzzles, puzzles, board(4)))) == len(orbits)
    random = np.random.default_rng(0)
    answers = minimal(9, 40).answers
    keys = class_keys(answers, answers, board(9))
    for _ in range(5):
        turned = np.stack([random_symmetry(answer, random) for answer in answers])
        assert (class_keys(turned, turned, board(9)) == keys).all()
    assert len(np.unique(keys)) == 40


@pytest.mark.parametrize("size", [4, 6])
def test_augmentation_reaches_the_whole_orbit_and_nothing_else(size: int) -> None:
    """Of a 6x6 puzzle only that each image is in the orbit: it has 2.5 million members."""
    puzzles = minimal(size, 1)
    count = 60_000 if size == 4 else 300
    group, variant = np.zeros(count, np.int64), np.arange(count)
    inputs, labels = rows_of(puzzles.questions, puzzles.answers, size, group, variant)
    assert (inputs[0] == puzzles.questions[0]).all()
    assert (labels[0] == puzzles.answers[0]).all()
    if size == 4:
        assert {row.tobytes() for row in inputs} == orbit(puzzles.questions[0], 4)
    else:
        assert len(np.unique(inputs, axis=0)) == count
        assert (class_keys(inputs, labels, board(6)) == puzzles.keys[0]).all()
    solved = solve(inputs, board(size))
    assert (solved.counts == 1).all()
    assert (solved.solutions == labels).all()


def test_augmentations_of_9x9_are_equivalent_and_do_not_depend_on_the_batch() -> None:
    puzzles = minimal(9, 20)
    group, variant = np.repeat(np.arange(20), 30), np.tile(np.arange(30), 20)
    inputs, labels = rows_of(puzzles.questions, puzzles.answers, 9, group, variant, seed=3)
    assert (solve(inputs, board(9)).solutions == labels).all()
    assert (class_keys(inputs, labels, board(9)) == puzzles.keys[group]).all()
    assert len(np.unique(inputs, axis=0)) == len(inputs)
    chosen = np.random.default_rng(0).permutation(600)[:50]
    again, _ = rows_of(puzzles.questions, puzzles.answers, 9, group[chosen], variant[chosen], seed=3)
    assert (again == inputs[chosen]).all()
    other_seed, _ = rows_of(puzzles.questions, puzzles.answers, 9, group, variant, seed=4)
    assert ((other_seed == inputs).all(axis=1) == (variant == 0)).all()


def test_board_size_refuses_what_is_no_sudoku() -> None:
    assert [board_size(cells) for cells in (16, 36, 81)] == [4, 6, 9]
    for cells in (15, 25, 900):
        with pytest.raises(InputError, match=str(cells)):
            board_size(cells)


def test_splits_share_no_class_and_do_not_depend_on_the_task_size() -> None:
    def attempts(start: int, stop: int) -> Puzzles:
        return generate(board(4), seed=5, start=start, stop=stop, clues=(0, 0), min_guesses=0)

    wanted = {"train": 300, "test": 100}
    one, other = (generate_splits(attempts, wanted, per_task=size, patience=10_000, remedy="") for size in (32, 175))
    for split, count in wanted.items():
        assert len(np.unique(one[split].questions, axis=0)) == count
        for column, again in zip(one[split], other[split], strict=True):
            assert (column == again).all()
    trained = set().union(*(orbit(puzzle, 4) for puzzle in one["train"].questions[:40]))
    assert not trained & {puzzle.tobytes() for puzzle in one["test"].questions}
    assert not set(one["train"].keys.tolist()) & set(one["test"].keys.tolist())


def test_splits_end_when_there_are_no_more_puzzles() -> None:
    def attempts(start: int, stop: int) -> Puzzles:
        number = np.arange(start, stop) % 7
        return Puzzles(number[:, None].astype(np.uint8), number[:, None], number.astype(np.uint64), number)

    with pytest.raises(InputError, match=r"train 4/5, test 3/5\); ask for less"):
        generate_splits(attempts, {"train": 5, "test": 5}, per_task=10, patience=100, remedy="ask for less")
