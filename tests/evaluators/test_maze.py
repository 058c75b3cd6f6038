"""Figures of the maze evaluator on hand-made predictions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import datasets.maze
from datasets.common import InputError, PuzzleDatasetMetadata
from evaluators import maze
from evaluators.common import Evaluator, wilson_interval
from evaluators.maze import Maze

CHARACTERS = "_# SGo"
MAZE = "S   |    |  # |   G"
LABEL = "S   |o   |o # |oooG"


def tokens(picture: str) -> np.ndarray:
    return np.array([CHARACTERS.index(character) for character in picture.replace("|", "")])


def metadata(**changes: object) -> PuzzleDatasetMetadata:
    fields = {
        "pad_id": 0, "ignore_label_id": 0, "blank_identifier_id": 0, "vocab_size": 6, "seq_len": 16,
        "num_puzzle_identifiers": 1, "total_groups": 2, "mean_puzzle_examples": 1.0, "sets": ["all"],
    }  # fmt: skip
    return PuzzleDatasetMetadata.model_validate(fields | changes)


def batch(question: str = MAZE, answer: str = LABEL, row: int = 0) -> dict[str, np.ndarray]:
    return {
        "inputs": tokens(question)[None].astype(np.int32),
        "labels": tokens(answer)[None].astype(np.int32),
        "puzzle_identifiers": np.zeros(1, np.int32),
        "row_index": np.array([row]),
    }


def figures(predicted: str, question: str = MAZE, answer: str = LABEL) -> dict[str, float]:
    evaluator = Maze("nowhere", metadata(seq_len=len(tokens(question))))
    evaluator.begin_eval()
    evaluator.update_batch(batch(question, answer), {"preds": tokens(predicted)[None]})
    result = evaluator.result(None)
    assert result is not None
    return result


def test_the_label_is_exact_shortest_and_valid() -> None:
    low, high = wilson_interval(1, 1)
    assert figures(LABEL) == {
        "Maze/rows": 1,
        "Maze/exact": 1,
        "Maze/exact_low": low,
        "Maze/exact_high": high,
        "Maze/cell": 1,
        "Maze/shortest_path": 1,
        "Maze/valid_path": 1,
        "Maze/copy_baseline": 11 / 16,
    }


@pytest.mark.parametrize(
    ("predicted", "shortest", "valid"),
    [
        ("Sooo|   o|  #o|   G", 1, 1),  # another shortest path
        ("So  | o  | o# | ooG", 1, 1),
        ("S   |    |  # |   G", 0, 0),  # no path
        ("S   |o   |o # |o oG", 0, 0),  # a gap
        ("S   |o   |o # |oooG".replace("#", " "), 0, 0),  # a wall is gone
        ("S   |o  #|o # |oooG", 0, 0),  # a wall is new
        ("So  | oo |  o |  oG", 0, 0),  # through the wall
        ("S   |o   |o # |oooo", 0, 0),  # G is gone
        ("o   |o   |o # |oooG", 0, 0),  # S is gone
        ("S   |o  S|o # |oooG", 0, 0),  # a second S
        ("S  o|o   |o # |oooG", 0, 0),  # a stray cell
        ("So  |o   |o # |oooG", 0, 0),  # a branch
        ("Sooo|o  o|o #o|oooG", 0, 0),  # both ways round
        ("S_  |o   |o # |oooG", 0, 0),  # padding is no free cell
    ],
)
def test_paths_are_judged_by_the_maze_not_by_the_label(predicted: str, shortest: int, valid: int) -> None:
    got = figures(predicted)
    assert (got["Maze/exact"], got["Maze/shortest_path"], got["Maze/valid_path"]) == (0, shortest, valid)


def test_a_detour_is_valid_but_not_shortest() -> None:
    question = "S    |     |     |     |G    "
    got = figures("Sooo |   o |   o |   o |Gooo ", question, "S    |o    |o    |o    |G    ")
    assert (got["Maze/shortest_path"], got["Maze/valid_path"]) == (0, 1)


def test_a_ring_beside_the_path_is_no_path() -> None:
    question = "SG   |     |     |     |     "
    alone, ringed = "SG   |     |     |     |     ", "SG   |     |  ooo|  o o|  ooo"
    assert figures(alone, question, question)["Maze/shortest_path"] == 1
    got = figures(ringed, question, question)
    assert (got["Maze/shortest_path"], got["Maze/valid_path"]) == (0, 0)


def simple_paths(question: np.ndarray, side: int) -> Iterator[list[int]]:
    """All paths from S to G that visit no cell twice, as lists of cells."""
    goal = int(np.flatnonzero(question == 4)[0])

    def extend(path: list[int]) -> Iterator[list[int]]:
        if path[-1] == goal:
            yield path
            return
        row, col = divmod(path[-1], side)
        for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            if 0 <= row + down < side and 0 <= col + right < side:
                cell = (row + down) * side + col + right
                if question[cell] != 1 and cell not in path:
                    yield from extend([*path, cell])

    return extend([int(np.flatnonzero(question == 3)[0])])


def is_straightforward(path: list[int], side: int) -> bool:
    """Whether only successive cells of a path touch."""
    places = [divmod(cell, side) for cell in path]
    return all(abs(a[0] - b[0]) + abs(a[1] - b[1]) > 1 for i, a in enumerate(places) for b in places[i + 2 :])


def test_every_path_of_random_mazes_is_judged_as_enumeration_says() -> None:
    random = np.random.default_rng(0)
    judged = {(valid, shortest): 0 for valid in (False, True) for shortest in (False, True)}
    for _ in range(30):
        question = np.where(random.random(16) < 0.3, 1, 2)
        question[random.choice(16, 2, replace=False)] = 3, 4
        paths = list(simple_paths(question, 4))
        for path in paths:
            predicted = question.copy()
            predicted[path[1:-1]] = 5
            evaluator = Maze("nowhere", metadata())
            evaluator.update_batch(
                {"inputs": question[None], "labels": predicted[None], "row_index": np.array([0])},
                {"preds": predicted[None]},
            )
            result = evaluator.result(None)
            assert result is not None
            valid, shortest = is_straightforward(path, 4), len(path) == min(map(len, paths))
            assert (result["Maze/valid_path"], result["Maze/shortest_path"]) == (valid, shortest)
            judged[valid, shortest] += 1
    assert judged.pop((False, True)) == 0
    assert min(judged.values()) > 10


def test_table_is_in_data_set_order(tmp_path: Path) -> None:
    evaluator = Maze("nowhere", metadata())
    for row in (2, 0, 1):
        predicted = LABEL if row else MAZE
        evaluator.update_batch(batch(row=row), {"preds": tokens(predicted)[None]})
    evaluator.result(tmp_path)
    table = (tmp_path / "maze_results.csv").read_text()
    assert table == "row_index,exact,cell_accuracy\n0,0,0.687500\n1,1,1.000000\n2,1,1.000000\n"


def test_tokens_are_those_of_the_data_sets() -> None:
    for name in ("WALL", "FREE", "START", "GOAL", "PATH", "VOCAB_SIZE"):
        assert getattr(maze, name) == getattr(datasets.maze, name)


@pytest.mark.parametrize("changes", [{"seq_len": 15}, {"vocab_size": 11}])
def test_other_data_sets_are_refused(changes: dict[str, object]) -> None:
    assert isinstance(Maze("data/x", metadata()), Evaluator)
    with pytest.raises(InputError, match=r"^data/x: .*choose the evaluator"):
        Maze("data/x", metadata(**changes))
