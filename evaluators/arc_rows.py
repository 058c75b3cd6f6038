"""ARC token rows back to the grids they stand for: crop, undo the symmetry, undo the colours (numba).

A row holds side*side tokens: 0 PAD, 1 EOS, colour + 2. Its grid is the largest rectangle of colours that has
the grid's top-left corner, and that corner is read off the *input* row, as input and prediction are shifted
alike. A grid is returned as its key, the bytes [height, width, cells...]: exact, unlike a hash.

Usage: keys = grid_keys(preds, find_corners(inputs, side), side, dihedral, inverse_colours)
"""

from __future__ import annotations

import numpy as np
from numba import njit

from datasets.common import ARC_COLOUR_0, ARC_VOCAB_SIZE

FIRST_COLOUR, LAST_COLOUR = ARC_COLOUR_0, ARC_VOCAB_SIZE - 1
HEADER = 2

# For each dihedral index the direction, as (row, column), in which the augmented grid is read while the rows
# (first pair) and the columns (second pair) of the original grid advance. Order of datasets.common.
_READING_DIRECTIONS = np.array(
    [
        [[1, 0], [0, 1]],
        [[0, 1], [-1, 0]],
        [[-1, 0], [0, -1]],
        [[0, -1], [1, 0]],
        [[1, 0], [0, -1]],
        [[-1, 0], [0, 1]],
        [[0, 1], [1, 0]],
        [[0, -1], [-1, 0]],
    ],
    dtype=np.int64,
)


@njit(cache=True, nogil=True)
def find_corners(tokens: np.ndarray, side: int) -> np.ndarray:
    """Position of each row's first colour, 0 where it has none: [n, side*side] tokens -> [n] int64."""
    corners = np.zeros(len(tokens), np.int64)
    for n in range(len(tokens)):
        for position in range(side * side):
            if FIRST_COLOUR <= tokens[n, position] <= LAST_COLOUR:
                corners[n] = position
                break
    return corners


@njit(cache=True, nogil=True)
def crop(row: np.ndarray, corner: int, side: int) -> tuple[int, int]:
    """Height, width of the largest all-colour rectangle at `corner`, the flattest of equals; (0, 0) if none.

    `row` [side*side] tokens, `corner` a position in it.
    """
    best_height, best_width = 0, 0
    width = side - corner % side
    for height in range(1, side - corner // side + 1):
        start = corner + (height - 1) * side
        run = 0
        while run < width and FIRST_COLOUR <= row[start + run] <= LAST_COLOUR:
            run += 1
        width = run
        if height * width > best_height * best_width:
            best_height, best_width = height, width
        if width == 0:
            break
    return best_height, best_width


@njit(cache=True, nogil=True)
def _fill_keys(
    tokens: np.ndarray,
    corners: np.ndarray,
    side: int,
    dihedral: np.ndarray,
    inverse_colours: np.ndarray,
    keys: np.ndarray,
    lengths: np.ndarray,
) -> None:
    for n in range(len(tokens)):
        height, width = crop(tokens[n], corners[n], side)
        along_rows, along_columns = _READING_DIRECTIONS[dihedral[n]]
        row_step = along_rows[0] * side + along_rows[1]
        column_step = along_columns[0] * side + along_columns[1]
        start = corners[n]
        if min(along_rows[0], along_columns[0]) < 0:
            start += (height - 1) * side
        if min(along_rows[1], along_columns[1]) < 0:
            start += width - 1
        if along_rows[0] == 0:
            height, width = width, height
        keys[n, 0], keys[n, 1] = height, width
        cell = HEADER
        for i in range(height):
            for j in range(width):
                token = tokens[n, start + i * row_step + j * column_step]
                keys[n, cell] = inverse_colours[n, token - FIRST_COLOUR]
                cell += 1
        lengths[n] = cell


def grid_keys(
    tokens: np.ndarray, corners: np.ndarray, side: int, dihedral: np.ndarray, inverse_colours: np.ndarray
) -> list[bytes]:
    """Keys of the original grids behind augmented rows.

    Args:
        tokens: [n, side*side] integers.
        corners: [n] int64, see `find_corners`.
        dihedral: [n] symmetry that made the row, 0..7.
        inverse_colours: [n, 10] uint8, original colour of each colour in the row.
    """
    if tokens.shape[1] != side * side:
        raise ValueError(f"rows of {tokens.shape[1]} tokens do not hold a {side}x{side} grid")
    keys = np.empty((len(tokens), HEADER + side * side), np.uint8)
    lengths = np.empty(len(tokens), np.int64)
    _fill_keys(tokens, corners, side, dihedral, inverse_colours, keys, lengths)
    return [key[:length].tobytes() for key, length in zip(keys, lengths.tolist(), strict=True)]


def grid_to_key(grid: list[list[int]]) -> bytes:
    """Key of a grid of colours 0..9 given as a list of rows."""
    return bytes([len(grid), len(grid[0])]) + bytes(cell for row in grid for cell in row)


def key_to_grid(key: bytes) -> list[list[int]]:
    """The grid of a key, as a list of rows."""
    width = key[1]
    return [list(key[start : start + width]) for start in range(HEADER, len(key), width or 1)]


def is_empty(key: bytes) -> bool:
    """Whether the key is that of a row without any colour at its corner."""
    return len(key) == HEADER
