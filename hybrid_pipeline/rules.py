"""The rules of the instructed grids: what a sentence of `hybrid_pipeline.phrases` asks for, done.

A rule says nothing about itself in the grid: without its sentence one can only guess. An instance is a rule with
values for its parameters; `INSTANCES` has all of them, in a fixed order.

Usage: ``output = INSTANCES[0].apply(grid)``
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations, product

import numpy as np

from hybrid_pipeline.grids import Grid
from hybrid_pipeline.phrases import PHRASES

BLACK = 0
COLOURS = {"blue": 1, "red": 2, "green": 3, "yellow": 4, "pink": 6, "orange": 7}
SIDES = ("top", "bottom", "left", "right")
DIRECTIONS = ("up", "down", "left", "right")
STEPS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
TURNS = ("clockwise", "counterclockwise")
SIDES_TO_FLIP = ("left and right", "top and bottom")


@dataclass(frozen=True)
class Instance:
    """`arguments`: the parameters' values as they stand in a sentence, by name."""

    rule: str
    arguments: tuple[tuple[str, str], ...]

    def apply(self, grid: Grid) -> Grid:
        """What the rule makes of a grid of colours [rows, columns], which stays as it is."""
        return OPERATIONS[self.rule](grid, *(value for _, value in self.arguments))

    def sentences(self, held_out: bool) -> list[str]:
        """Those for training, or those for testing only."""
        phrases = PHRASES[self.rule].held_out if held_out else PHRASES[self.rule].train
        said = (phrase.format(**dict(self.arguments)) for phrase in phrases)
        return [text[0].upper() + text[1:] for text in said]


def _recolour(grid: Grid, old: str, new: str) -> Grid:
    return np.where(grid == COLOURS[old], COLOURS[new], grid)


def _swap(grid: Grid, one: str, two: str) -> Grid:
    return np.where(grid == COLOURS[one], COLOURS[two], _recolour(grid, two, one))


def _erase(grid: Grid, colour: str) -> Grid:
    return np.where(grid == COLOURS[colour], BLACK, grid)


def _keep(grid: Grid, colour: str) -> Grid:
    return np.where(grid == COLOURS[colour], grid, BLACK)


def _fill(grid: Grid, colour: str) -> Grid:
    return np.where(grid == BLACK, COLOURS[colour], grid)


def _frame(grid: Grid, colour: str) -> Grid:
    found = np.full_like(grid, COLOURS[colour])
    found[1:-1, 1:-1] = grid[1:-1, 1:-1]
    return found


def _corners(grid: Grid, colour: str) -> Grid:
    found = grid.copy()
    found[:: len(grid) - 1, :: grid.shape[1] - 1] = COLOURS[colour]
    return found


def _diagonal(grid: Grid, colour: str) -> Grid:
    found = grid.copy()
    np.fill_diagonal(found, COLOURS[colour])
    return found


def _line(grid: Grid, side: str) -> Grid:
    """The outermost row or column of a side, as a view that keeps both dimensions."""
    return {"top": grid[:1], "bottom": grid[-1:], "left": grid[:, :1], "right": grid[:, -1:]}[side]


def _edge(grid: Grid, side: str, colour: str) -> Grid:
    found = grid.copy()
    _line(found, side)[:] = COLOURS[colour]
    return found


def _roll(grid: Grid, direction: str) -> Grid:
    return np.roll(grid, STEPS[direction], axis=(0, 1))


def _shift(grid: Grid, direction: str) -> Grid:
    found = _roll(grid, direction)
    entered = {"up": "bottom", "down": "top", "left": "right", "right": "left"}[direction]
    _line(found, entered)[:] = BLACK
    return found


def _rotate(grid: Grid, turn: str) -> Grid:
    return np.rot90(grid, -1 if turn == "clockwise" else 1)


def _flip(grid: Grid, sides: str) -> Grid:
    return np.flip(grid, axis=1 if sides == "left and right" else 0)


def _copy_edge(grid: Grid, side: str) -> Grid:
    return np.broadcast_to(_line(grid, side), grid.shape)


def _symmetric(grid: Grid, side: str) -> Grid:
    axis = 0 if side in ("top", "bottom") else 1
    middle = -(-grid.shape[axis] // 2)  # the line in the middle belongs to both halves
    place = np.arange(grid.shape[axis])
    first = (place < middle) if side in ("top", "left") else (place >= grid.shape[axis] - middle)
    kept = first[:, None] if axis == 0 else first[None, :]
    return np.where(kept, grid, np.flip(grid, axis=axis))


OPERATIONS: dict[str, Callable[..., Grid]] = {
    "recolour": _recolour,
    "swap": _swap,
    "erase": _erase,
    "keep": _keep,
    "fill": _fill,
    "frame": _frame,
    "corners": _corners,
    "diagonal": _diagonal,
    "edge": _edge,
    "shift": _shift,
    "roll": _roll,
    "rotate": _rotate,
    "flip": _flip,
    "copy_edge": _copy_edge,
    "symmetric": _symmetric,
}


def _all(rule: str, names: Sequence[str], values: Sequence[tuple[str, ...]]) -> list[Instance]:
    return [Instance(rule, tuple(zip(names, chosen, strict=True))) for chosen in values]


def _one_of(rule: str, name: str, values: Sequence[str]) -> list[Instance]:
    return _all(rule, [name], [(value,) for value in values])


INSTANCES: list[Instance] = [
    *_all("recolour", ["old", "new"], list(permutations(COLOURS, 2))),
    *_all("swap", ["one", "two"], list(combinations(COLOURS, 2))),
    *(found for rule in ("erase", "keep", "fill", "frame", "corners", "diagonal")
      for found in _one_of(rule, "colour", list(COLOURS))),
    *_all("edge", ["side", "colour"], list(product(SIDES, COLOURS))),
    *_one_of("shift", "direction", DIRECTIONS),
    *_one_of("roll", "direction", DIRECTIONS),
    *_one_of("rotate", "turn", TURNS),
    *_one_of("flip", "sides", SIDES_TO_FLIP),
    *_one_of("copy_edge", "side", SIDES),
    *_one_of("symmetric", "side", SIDES),
]  # fmt: skip
RULES: list[str] = list(OPERATIONS)
