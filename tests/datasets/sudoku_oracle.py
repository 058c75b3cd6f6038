"""Sudoku the slow and obvious way, to check the fast one: brute-force solving and explicit symmetries."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}


def solutions(puzzle: list[int], size: int, limit: int = 10**6) -> list[list[int]]:
    """All completions of a puzzle (0 for a blank) up to a limit, by trying digits in the most constrained cell."""
    if any(digit and digit not in options(puzzle, cell, size) for cell, digit in enumerate(puzzle)):
        return []
    blanks = [cell for cell, digit in enumerate(puzzle) if digit == 0]
    if not blanks:
        return [puzzle]
    cell = min(blanks, key=lambda blank: len(options(puzzle, blank, size)))
    found: list[list[int]] = []
    for digit in options(puzzle, cell, size):
        if len(found) < limit:
            found += solutions([*puzzle[:cell], digit, *puzzle[cell + 1 :]], size, limit - len(found))
    return found


def options(puzzle: list[int], cell: int, size: int) -> list[int]:
    """Digits that no other cell of the row, column and box of a cell has."""
    box_rows, box_cols = BOXES[size]
    row, col = divmod(cell, size)
    taken = {
        puzzle[other]
        for other in range(size * size)
        if other != cell
        and (
            other // size == row
            or other % size == col
            or (other // size // box_rows == row // box_rows and other % size // box_cols == col // box_cols)
        )
    }
    return [digit for digit in range(1, size + 1) if digit not in taken]


def line_orders(size: int, lines_per_band: int) -> list[list[int]]:
    """Permutations of all rows (or columns) under which the bands stay together, found among all permutations."""
    return [
        list(order)
        for order in permutations(range(size))
        if all(
            len({line // lines_per_band for line in order[start : start + lines_per_band]}) == 1
            for start in range(0, size, lines_per_band)
        )
    ]


def orbit(puzzle: np.ndarray, size: int) -> set[bytes]:
    """All puzzles that symmetries of the rules make of one, uint8 [cells]; for small sizes."""
    box_rows, box_cols = BOXES[size]
    grid = puzzle.reshape(size, size)
    squares = [grid, grid.T] if box_rows == box_cols else [grid]
    images = set()
    for square, rows, cols in product(squares, line_orders(size, box_rows), line_orders(size, box_cols)):
        moved = square[np.ix_(rows, cols)]
        for digits in permutations(range(1, size + 1)):
            images.add(np.array([0, *digits], np.uint8)[moved].tobytes())
    return images


def random_symmetry(grid: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A 9x9 grid, uint8 [81], relabelled, its lines permuted and perhaps transposed."""
    square = grid.reshape(9, 9)
    rows, cols = (
        np.concatenate([band * 3 + random.permutation(3) for band in random.permutation(3)]) for _ in range(2)
    )
    moved = square[np.ix_(rows, cols)]
    digits = np.concatenate([[0], 1 + random.permutation(9)]).astype(np.uint8)
    return digits[moved.T if random.random() < 0.5 else moved].ravel()
