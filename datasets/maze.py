"""Mazes as tokens: shortest paths, the row maker and the generator of mazes in the manner of Maze-Hard.

Tokens are 0 padding, 1 wall, 2 free, 3 start S, 4 goal G and, in labels only, 5 path. Shortest paths are
rarely unique; the label is the one that breadth-first search from S finds when it looks down, left, right, up
and a cell keeps the first neighbour that reached it. This rule reproduces all labels of Maze-Hard (30x30). No
symmetry of the square but the identity respects it, so an augmented maze gets its label from a search of its
own.

The generator draws a wall density p from U(0.3, 0.5), puts walls on exactly int(p n^2) random cells of an n x
n grid, clears two random cells for S and G, and keeps the maze if its shortest path is long enough. This
matches the path lengths and densities of Maze-Hard for n = 30 and at least 110 cells.

Usage: ``mazes = generate(30, seed=0, start=0, stop=100_000, min_path=110)``
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numba
import numpy as np

from datasets.augment import counter_below, counter_hash, dihedral_source
from datasets.common import DIHEDRAL_TRANSFORMS, InputError
from datasets.generation import Puzzles
from datasets.storage import RowIndex, SplitPlan

CHARACTERS = "# SGo"  # of tokens 1 to 5
WALL, FREE, START, GOAL, PATH = range(1, 6)
VOCAB_SIZE = 6

_LOWEST_DENSITY, _HIGHEST_DENSITY = 0.3, 0.5
_STREAM = -1  # the draws of the generator
_HARD_SIZE, _HARD_PATH = 30, 110


def default_min_path(size: int) -> int:
    """Least path length in cells, S and G included: 110 for 30x30, in proportion to size^1.5 below and to
    size above.

    Longer paths than that are too rare among random mazes: 30x30 takes some 40,000 attempts a maze, 10x10
    130.
    """
    ratio = size / _HARD_SIZE
    return max(2, round(_HARD_PATH * ratio ** (1.5 if ratio < 1 else 1.0)))


def maze_size(seq_len: int) -> int:
    """Side of the square maze with ``seq_len`` cells; `InputError` if there is none."""
    size = math.isqrt(seq_len)
    if size * size != seq_len or size < 2:
        raise InputError(f"{seq_len} cells are no square maze")
    return size


def maze_plan(mazes: np.ndarray, labels: np.ndarray, *, augment: bool) -> SplitPlan:
    """The split of mazes and labels, uint8 [groups, cells] tokens, each in 1 or all 8 orientations."""
    groups = len(mazes)
    variants = DIHEDRAL_TRANSFORMS if augment else 1
    return SplitPlan(
        puzzle_identifiers=np.zeros(groups * variants, np.int32),
        puzzle_indices=np.arange(groups * variants + 1),
        group_indices=np.arange(groups + 1) * variants,
        base={"inputs": mazes, "labels": labels},
        plan={},
    )


def make_rows(
    base: Mapping[str, np.ndarray],
    plan: Mapping[str, np.ndarray],
    index: RowIndex,
    inputs: np.ndarray,
    labels: np.ndarray,
) -> None:
    """The row maker of `datasets.storage.RowMaker`: variant k is the maze under dihedral symmetry k."""
    _turn_rows(np.asarray(base["inputs"]), np.asarray(base["labels"]), index.group, index.variant, inputs, labels)


def shortest_paths(mazes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels, uint8 [n, cells], and path lengths in cells, int64 [n] (0: no path), of mazes, uint8 [n, cells]
    tokens.

    Every maze has one S and one G; the label of a maze without a path is the maze.
    """
    labels = np.empty_like(mazes)
    lengths = np.empty(len(mazes), np.int64)
    _label_rows(mazes, maze_size(mazes.shape[1]), labels, lengths)
    return labels, lengths


def class_keys(mazes: np.ndarray) -> np.ndarray:
    """Keys, uint64 [n], of mazes, uint8 [n, cells]: equal for mazes that turn or mirror into another."""
    keys = np.zeros(len(mazes), np.uint64)
    _dihedral_keys(mazes, maze_size(mazes.shape[1]), keys)
    return keys


def generate(size: int, *, seed: int, start: int, stop: int, min_path: int) -> Puzzles:
    """The mazes of attempts start to stop - 1 whose shortest path has at least ``min_path`` cells."""
    attempts = _successes(seed, start, stop, size, min_path)
    mazes = np.empty((len(attempts), size * size), np.uint8)
    _draw_rows(seed, attempts, size, mazes)
    labels, lengths = shortest_paths(mazes)
    return Puzzles(mazes, labels, class_keys(mazes), lengths)


@numba.njit(cache=True, nogil=True)
def _search(maze: np.ndarray, size: int, queue: np.ndarray, came_from: np.ndarray) -> int:
    """Searches from S breadth-first; returns G or -1. ``came_from``, int64 [cells], is -1 if unseen."""
    came_from[:] = -1
    for cell in range(maze.size):
        if maze[cell] == START:
            queue[0] = cell
            came_from[cell] = cell
    head, tail = 0, 1
    while head < tail:
        cell = queue[head]
        head += 1
        row, col = divmod(cell, size)
        for step in range(4):
            if step == 0:
                inside, neighbour = row + 1 < size, cell + size
            elif step == 1:
                inside, neighbour = col > 0, cell - 1
            elif step == 2:
                inside, neighbour = col + 1 < size, cell + 1
            else:
                inside, neighbour = row > 0, cell - size
            if inside and maze[neighbour] != WALL and came_from[neighbour] < 0:
                came_from[neighbour] = cell
                if maze[neighbour] == GOAL:
                    return neighbour
                queue[tail] = neighbour
                tail += 1
    return -1


@numba.njit(cache=True, nogil=True)
def _label(maze: np.ndarray, size: int, queue: np.ndarray, came_from: np.ndarray, label: np.ndarray) -> int:
    """Writes the label of a maze and returns the cells of its path, 0 if there is none."""
    label[:] = maze
    cell = _search(maze, size, queue, came_from)
    if cell < 0:
        return 0
    length = 1
    while came_from[cell] != cell:
        if length > 1:
            label[cell] = PATH
        cell = came_from[cell]
        length += 1
    return length


@numba.njit(cache=True, nogil=True)
def _label_rows(mazes: np.ndarray, size: int, labels: np.ndarray, lengths: np.ndarray) -> None:
    queue = np.empty(size * size, np.int64)
    came_from = np.empty(size * size, np.int64)
    for row in range(len(mazes)):
        lengths[row] = _label(mazes[row], size, queue, came_from, labels[row])


@numba.njit(cache=True, nogil=True)
def _turn(maze: np.ndarray, size: int, tid: int, turned: np.ndarray) -> None:
    for cell in range(size * size):
        row, col = dihedral_source(tid, cell // size, cell % size, size, size)
        turned[cell] = maze[row * size + col]


@numba.njit(cache=True, nogil=True)
def _turn_rows(
    base_inputs: np.ndarray,
    base_labels: np.ndarray,
    group: np.ndarray,
    variant: np.ndarray,
    inputs: np.ndarray,
    labels: np.ndarray,
) -> None:
    cells = base_inputs.shape[1]
    size = int(math.sqrt(cells))
    queue = np.empty(cells, np.int64)
    came_from = np.empty(cells, np.int64)
    for row in range(group.size):
        if variant[row] == 0:
            inputs[row] = base_inputs[group[row]]
            labels[row] = base_labels[group[row]]
        else:
            _turn(base_inputs[group[row]], size, variant[row], inputs[row])
            _label(inputs[row], size, queue, came_from, labels[row])


@numba.njit(cache=True, nogil=True)
def _dihedral_keys(mazes: np.ndarray, size: int, keys: np.ndarray) -> None:
    turned = np.empty(size * size, mazes.dtype)
    for row in range(len(mazes)):
        for tid in range(DIHEDRAL_TRANSFORMS):
            _turn(mazes[row], size, tid, turned)
            key = np.uint64(0)
            for token in turned:
                key = counter_hash(key, token, 0, 0)
            keys[row] += key


@numba.njit(cache=True, nogil=True)
def _draw(seed: int, attempt: int, size: int, maze: np.ndarray) -> None:
    """The maze of one attempt, whatever its path."""
    cells = size * size
    uniform = (counter_hash(seed, attempt, _STREAM, 0) >> np.uint64(11)) * 2.0**-53
    walls = int(cells * (_LOWEST_DENSITY + (_HIGHEST_DENSITY - _LOWEST_DENSITY) * uniform))
    start = counter_below(seed, attempt, _STREAM, 1, cells)
    goal = (start + 1 + counter_below(seed, attempt, _STREAM, 2, cells - 1)) % cells
    maze[:] = FREE
    draw = 3
    while walls > 0:
        bits = counter_hash(seed, attempt, _STREAM, draw)
        draw += 1
        for half in (bits >> np.uint64(32), bits & np.uint64(0xFFFFFFFF)):
            cell = (half * np.uint64(cells)) >> np.uint64(32)
            if walls > 0 and maze[cell] == FREE:
                maze[cell] = WALL
                walls -= 1
    maze[start] = START
    maze[goal] = GOAL


@numba.njit(cache=True, nogil=True)
def _draw_rows(seed: int, attempts: np.ndarray, size: int, mazes: np.ndarray) -> None:
    for row in range(attempts.size):
        _draw(seed, attempts[row], size, mazes[row])


@numba.njit(cache=True, nogil=True)
def _successes(seed: int, start: int, stop: int, size: int, min_path: int) -> np.ndarray:
    """The attempts of a range whose path is long enough."""
    maze = np.empty(size * size, np.uint8)
    label = np.empty_like(maze)
    queue = np.empty(maze.size, np.int64)
    came_from = np.empty(maze.size, np.int64)
    found = np.empty(stop - start, np.int64)
    count = 0
    for attempt in range(start, stop):
        _draw(seed, attempt, size, maze)
        if _label(maze, size, queue, came_from, label) >= min_path:
            found[count] = attempt
            count += 1
    return found[:count]
