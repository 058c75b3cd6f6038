"""Builds a maze dataset: generated mazes in the manner of Maze-Hard, or lists of mazes from files or the hub.

The answer to a maze is one of its shortest paths. A generated test maze is no training maze turned or
mirrored.

Usage: ``python -m datasets.build_maze_dataset --output-dir data/maze-10x10 --size 10``
       ``python -m datasets.build_maze_dataset --output-dir data/maze-30x30-hard-1k
         --hub sapientinc/maze-30x30-hard-1k``
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

from datasets.common import InputError, run_builder
from datasets.generation import Puzzles, generate_splits
from datasets.maze import (
    CHARACTERS,
    GOAL,
    PATH,
    START,
    VOCAB_SIZE,
    class_keys,
    default_min_path,
    generate,
    maze_plan,
    maze_size,
    shortest_paths,
)
from datasets.puzzle_builder import check_shared, finish, read_lists, shared_parser
from datasets.puzzle_lists import PuzzleList

_GENERATOR_OPTIONS = ("size", "min_path", "num_train", "num_test")
_ATTEMPTS_PER_TASK = 8192
_PATIENCE = 5_000_000


def main(argv: list[str] | None = None) -> int:
    """Command line of the builder; returns the exit code, 2 for a user error."""
    args = _parser().parse_args(argv)
    return run_builder(lambda: build(args))


def build(args: argparse.Namespace) -> None:
    """Builds the dataset that the parsed command line describes; raises `InputError` before writing."""
    started = time.perf_counter()
    check_shared(args)
    lists = read_lists(args, _GENERATOR_OPTIONS)
    if lists is None:
        splits = _generated(args)
    else:
        splits = {split: _listed(puzzles, args.aug) for split, puzzles in lists.items()}
    finish(
        args,
        splits,
        lists,
        {
            split: maze_plan(puzzles.questions, puzzles.answers, augment=args.aug and split == "train")
            for split, puzzles in splits.items()
        },
        kind="maze",
        box=None,
        vocab_size=VOCAB_SIZE,
        class_meaning="mazes that a symmetry of the square makes equal",
        record={"difficulty_scale": "cells of the shortest path, S and G included"},
        started=started,
    )


def _parser() -> argparse.ArgumentParser:
    parser = shared_parser("build_maze_dataset", (__doc__ or "").split("\n\nUsage")[0])
    add = parser.add_argument
    add("--size", type=int, help="side of the square mazes to generate (default 30)")
    add("--min-path", type=int, help="least cells of the shortest path (default 110 for 30x30, scaled)")
    add("--aug", action="store_true", help="train on all 8 orientations, each labelled by its own search")
    return parser


def _generated(args: argparse.Namespace) -> dict[str, Puzzles]:
    size = 30 if args.size is None else args.size
    if not 3 <= size <= 255:
        raise InputError(f"--size {size} must be in 3..255")
    min_path = default_min_path(size) if args.min_path is None else args.min_path
    if not 2 <= min_path <= size * size:
        raise InputError(f"--min-path {min_path} must be in 2..{size * size} for --size {size}")
    return generate_splits(
        lambda start, stop: generate(size, seed=args.seed, start=start, stop=stop, min_path=min_path),
        {"train": args.num_train or 1000, "test": args.num_test or 1000},
        per_task=_ATTEMPTS_PER_TASK,
        patience=_PATIENCE,
        remedy="lower --min-path, --num-train or --num-test",
    )


def _listed(puzzles: PuzzleList, augment: bool) -> Puzzles:
    """The mazes of a list and their answers; `InputError` names the first line that is wrong."""
    if puzzles.answers is None:
        raise InputError(f"{puzzles.path} line 1: mazes come as CSV with the columns question and answer")
    size = puzzles.measured(maze_size)
    mazes = _tokens(puzzles, puzzles.questions, "question")
    answers = _tokens(puzzles, puzzles.answers, "answer")
    for name, token in (("S", START), ("G", GOAL)):
        counts = (mazes == token).sum(axis=1)
        for row in np.flatnonzero(counts != 1)[:1]:
            puzzles.fail(row, f"the maze has {counts[row]} cells {name}; it needs one")
    for row, cell in np.argwhere(mazes == PATH)[:1]:
        puzzles.fail(row, f"the question has path in cell {cell + 1}; it belongs in the answer")
    labels, lengths = shortest_paths(mazes)
    for row in np.flatnonzero(lengths == 0)[:1]:
        puzzles.fail(row, "the maze has no path from S to G; remove it")
    for row in np.flatnonzero((answers != labels).any(axis=1)).tolist():
        problem = _answer_problem(mazes[row], answers[row], int(lengths[row]), size)
        if problem is None and augment:
            problem = "the answer is not the shortest path that --aug would mix it with; drop --aug"
        if problem is not None:
            puzzles.fail(row, problem)
    return Puzzles(mazes, answers, class_keys(mazes), lengths)


def _answer_problem(maze: np.ndarray, answer: np.ndarray, length: int, size: int) -> str | None:
    """Why an answer [cells] is no shortest path of its maze [cells], None if it is one."""
    if (np.where(answer == PATH, maze, answer) != maze).any() or (maze[answer == PATH] == 1).any():
        return "the answer changes the maze or walks through walls; correct it"
    marked = int((answer == PATH).sum()) + 2
    along = np.where((answer == PATH) | (maze == START) | (maze == GOAL), maze, np.uint8(1))
    walked = int(shortest_paths(along[None])[1][0])
    if marked != length or walked != length:
        return f"the answer marks {marked} cells, not one of the shortest paths of {length}; correct it"
    return None


def _tokens(puzzles: PuzzleList, text: np.ndarray, column: str) -> np.ndarray:
    token_of = np.zeros(256, np.uint8)
    token_of[[ord(character) for character in CHARACTERS]] = range(1, len(CHARACTERS) + 1)
    tokens = token_of[text]
    for row, cell in np.argwhere(tokens == 0)[:1]:
        puzzles.fail(row, f'{column} has "{chr(text[row, cell])}" in cell {cell + 1}; use "{CHARACTERS}"')
    return tokens


if __name__ == "__main__":
    sys.exit(main())
