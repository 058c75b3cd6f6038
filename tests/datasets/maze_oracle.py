"""Mazes the slow and obvious way, to check the fast one: pictures, and shortest paths with lists and dictionaries."""

from __future__ import annotations

from collections import deque

import numpy as np

CHARACTERS = "_# SGo"  # of tokens 0 to 5
DOWN_LEFT_RIGHT_UP = ((1, 0), (0, -1), (0, 1), (-1, 0))


def tokens(picture: str) -> np.ndarray:
    """Tokens, uint8 [cells], of rows separated by "|"."""
    return np.array([CHARACTERS.index(character) for character in picture.replace("|", "")], np.uint8)


def picture(maze: np.ndarray) -> str:
    """Rows separated by "|" of tokens [cells] of a square maze."""
    side = int(len(maze) ** 0.5)
    return "|".join("".join(CHARACTERS[token] for token in row) for row in maze.reshape(side, side))


def solved(maze: np.ndarray, order: tuple[tuple[int, int], ...] = DOWN_LEFT_RIGHT_UP) -> np.ndarray | None:
    """The maze, uint8 [cells], with the path of a breadth-first search that looks around in ``order``."""
    side = int(len(maze) ** 0.5)
    grid = maze.reshape(side, side)
    start, goal = (tuple(np.argwhere(grid == token)[0].tolist()) for token in (3, 4))
    parent = {start: start}
    queue = deque([start])
    while queue:
        row, col = queue.popleft()
        for down, right in order:
            cell = row + down, col + right
            inside = 0 <= cell[0] < side and 0 <= cell[1] < side
            if inside and grid[cell] != 1 and cell not in parent:
                parent[cell] = row, col
                queue.append(cell)
    if goal not in parent:
        return None
    label = grid.copy()
    cell = parent[goal]
    while cell != start:
        label[cell] = 5
        cell = parent[cell]
    return label.ravel()
