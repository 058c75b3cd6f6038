"""A puzzle that a user wrote down, as a row that a model can be given: tokens, and labels where they can be worked out.

Usage: ``tokens, labels = read_grid("1.../..2./.3../...4", metadata)``
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets import arc_rows, maze, sudoku, sudoku_solver
from datasets.common import ARC_COLOURS, IGNORE_LABEL_ID, InputError, PuzzleDatasetMetadata, read_json
from evaluators.render import grid_shape

_HOW = {
    "sudoku": "digits, with . or 0 for a blank",
    "maze": f'the characters "{maze.CHARACTERS[:-1]}"',
    "arc": "digits for colours",
}


def read_grid(given: str, metadata: PuzzleDatasetMetadata) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Inputs and labels, int32 [seq_len], of a grid written as text, as JSON, or in a JSON file of that name.

    Rows of text are ended by ``/`` or a new line, which Sudoku and mazes may leave out; JSON is a list of rows. Labels
    are the solution of a Sudoku that has one only, and a shortest path through a maze; else -100. Raises `InputError`
    for what is no such grid.
    """
    kind = metadata.kind
    if kind is None:
        raise InputError("the data set does not say what kind of puzzle it holds, so a grid cannot be read for it")
    rows = _rows(given)
    side = grid_shape(metadata)[0]
    if kind == "arc":
        return _arc(rows, side)
    cells = "".join(rows)
    if len(cells) != metadata.seq_len:
        raise InputError(f"--grid has {len(cells)} cells, the model's puzzles have {side} rows of {side}")
    if len(rows) > 1 and {len(row) for row in rows} != {side}:
        widths = ", ".join(str(len(row)) for row in rows)
        raise InputError(f"--grid has rows of {widths} cells, the model's puzzles have {side} rows of {side}")
    return (_sudoku if kind == "sudoku" else _maze)(cells, side)


def _rows(given: str) -> list[str]:
    """The rows as text, of a list of rows in JSON too."""
    content: Any = None
    if given.endswith(".json"):
        content = read_json(Path(given))
    elif given.lstrip().startswith("["):
        try:
            content = json.loads(given)
        except ValueError as error:
            raise InputError(f"--grid is not valid JSON ({error}); give rows like [[1,0],[0,2]]") from None
    if content is None:
        return [row for row in given.replace("\n", "/").split("/") if row]
    if not isinstance(content, list) or not content or not all(isinstance(row, list | str) for row in content):
        raise InputError(f"--grid {given[:40]}: expected a list of rows, each a list of cells or a string")
    return ["".join(map(_character, row)) for row in content]


def _character(cell: Any) -> str:
    """A cell of a JSON row, which is one character as in a row of text."""
    text = "." if cell is None else str(cell)
    if len(text) != 1:
        raise InputError(f"--grid has the cell {json.dumps(cell)}: give a digit, a character or null")
    return text


def _sudoku(cells: str, size: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    digits = _numbers(cells.replace(".", "0"), size + 1, "sudoku")
    solved = sudoku_solver.solve(digits[None], sudoku_solver.board(size))
    inputs = np.where(digits > 0, digits + sudoku.BLANK_TOKEN, sudoku.BLANK_TOKEN).astype(np.int32)
    if solved.counts[0] != 1:
        return inputs, np.full_like(inputs, IGNORE_LABEL_ID)
    return inputs, solved.solutions[0].astype(np.int32) + sudoku.BLANK_TOKEN


def _maze(cells: str, side: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    unknown = sorted(set(cells) - set(maze.CHARACTERS[:-1]))
    if unknown:
        raise InputError(f'--grid has "{unknown[0]}": use {_HOW["maze"]}')
    for end in "SG":
        if cells.count(end) != 1:
            raise InputError(f"--grid has {cells.count(end)} cells {end}: a maze needs one")
    tokens = np.array([maze.CHARACTERS.index(cell) + 1 for cell in cells], np.uint8)
    labels, lengths = maze.shortest_paths(tokens[None])
    inputs = tokens.astype(np.int32)
    return inputs, labels[0].astype(np.int32) if lengths[0] else np.full_like(inputs, IGNORE_LABEL_ID)


def _arc(rows: list[str], side: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    widths = {len(row) for row in rows}
    if len(widths) != 1 or max(*widths, len(rows)) > side:
        raise InputError(f"--grid has rows of {sorted(widths)} cells: give equal ones, at most {side} by {side}")
    grid = np.stack([_numbers(row, ARC_COLOURS, "arc") for row in rows])
    inputs = arc_rows.tokens_of(grid, side).astype(np.int32)
    return inputs, np.full_like(inputs, IGNORE_LABEL_ID)


def _numbers(text: str, count: int, kind: str) -> NDArray[np.uint8]:
    """Digits below `count`."""
    for character in text:
        if not (character.isascii() and character.isdigit() and int(character) < count):
            raise InputError(f'--grid has "{character}": use {_HOW[kind]} below {count}')
    return np.array([int(character) for character in text], np.uint8)
