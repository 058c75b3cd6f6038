"""Grids as tokens, as text and on a terminal: cropping at the EOS border, the loss that teaches it, exact matches.

A row holds side x side tokens: 0 PAD, 1 EOS, colour + 2 (see `datasets.common`). A grid smaller than the row is
followed by EOS on its right and below it; its own cells are the largest rectangle of colours in the corner.

    row = tokens_of_grid(grid, side=6)
    assert np.array_equal(crop_grid_from_eos(row), grid)
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from datasets.common import ARC_COLOUR_0, ARC_COLOURS, ARC_EOS, ARC_PAD, IGNORE_LABEL_ID, InputError
from evaluators.arc_rows import crop
from evaluators.grid_drawing import ARC_PALETTE

Grid = NDArray[np.uint8]
Pair = tuple[Grid, Grid]


def tokens_of_grid(grid: Grid, side: int) -> NDArray[np.int32]:
    """The tokens int32 [side * side] of a grid of colours, at the upper left, with its EOS border where there is room.

    Raises `InputError` for a grid that is larger than the row.
    """
    rows, columns = grid.shape
    if max(rows, columns) > side:
        raise InputError(f"a grid of {rows}x{columns} cells does not fit rows of {side}x{side}: use a larger side")
    tokens = np.full((side, side), ARC_PAD, np.int32)
    tokens[:rows, :columns] = grid + ARC_COLOUR_0
    tokens[rows : rows + 1, :columns] = ARC_EOS
    tokens[:rows, columns : columns + 1] = ARC_EOS
    return tokens.ravel()


def label_of_grid(grid: Grid, side: int) -> NDArray[np.int32]:
    """Tokens of an answer; PAD, which lies beyond its EOS border, is nothing to be learned."""
    tokens = tokens_of_grid(grid, side)
    return np.where(tokens == ARC_PAD, IGNORE_LABEL_ID, tokens)


def crop_grid_from_eos(tokens: NDArray | Tensor) -> Grid:
    """Colours [rows, columns] of one row of tokens [side * side]: the largest all-colour rectangle at the upper left.

    An answer whose first cell is no colour gives a grid of 0x0.
    """
    row = np.asarray(tokens, dtype=np.int64).ravel()
    side = math.isqrt(row.size)
    rows, columns = crop(row, 0, side)
    return (row.reshape(side, side)[:rows, :columns] - ARC_COLOUR_0).astype(np.uint8)


def compute_loss_with_crop(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy, 0-D fp32, over the cells of the grid *and its EOS border*; 0 where there are none.

    Without the border the model never learns to close its grids, and no crop finds them. PAD, which a crop never
    reads, is left out. logits [batch, length, classes], targets int [batch, length].
    """
    counted = (targets != ARC_PAD) & (targets != IGNORE_LABEL_ID)
    wanted = torch.where(counted, targets, IGNORE_LABEL_ID).to(torch.long)
    total = F.cross_entropy(
        logits.float().flatten(0, -2), wanted.flatten(), ignore_index=IGNORE_LABEL_ID, reduction="sum"
    )
    return total / counted.sum().clamp_min(1)


def compute_exact_match(predictions: NDArray | Tensor, targets: NDArray | Tensor) -> NDArray[np.bool_]:
    """Bool [batch]: whether the cropped grids of two batches of tokens [batch, side * side] are equal, shape and all.

    A target without a grid is matched by nothing.
    """
    pairs = zip(np.asarray(predictions), np.asarray(targets), strict=True)
    cropped = ((crop_grid_from_eos(given), crop_grid_from_eos(wanted)) for given, wanted in pairs)
    return np.array([wanted.size > 0 and np.array_equal(given, wanted) for given, wanted in cropped], dtype=bool)


def visualize_grid(grid: Grid) -> str:
    """The grid as text in 24-bit colour for a terminal, two columns a cell, a line a row."""

    def cell(colour: int) -> str:
        red, green, blue = (int(ARC_PALETTE[colour][start : start + 2], 16) for start in (1, 3, 5))
        return f"\x1b[48;2;{red};{green};{blue}m  "

    return "\n".join("".join(cell(int(colour)) for colour in row) + "\x1b[0m" for row in grid)


def text_of_grid(grid: Grid) -> str:
    """A line of digits a row."""
    return "\n".join(" ".join(str(int(colour)) for colour in row) for row in grid)


def grid_of_text(text: str) -> Grid:
    """What `text_of_grid` wrote; `InputError` for lines that are no grid."""
    lines = [line.split() for line in text.strip().splitlines()]
    cells = [cell for line in lines for cell in line]
    if not cells or len({len(line) for line in lines}) != 1 or not all(re.fullmatch(r"\d", cell) for cell in cells):
        raise InputError(f"{text!r} is no grid: expected lines of as many digits each, 0 to {ARC_COLOURS - 1}")
    return np.array(lines, dtype=np.uint8)


def text_of_task(demonstrations: Sequence[Pair], test_input: Grid) -> str:
    """A task as a prompt: the demonstration pairs, then the input whose output is asked for."""
    parts = [
        f"Example {number}\nInput:\n{text_of_grid(given)}\nOutput:\n{text_of_grid(wanted)}"
        for number, (given, wanted) in enumerate(demonstrations, start=1)
    ]
    return "\n\n".join([*parts, f"Test\nInput:\n{text_of_grid(test_input)}\nOutput:"])


def task_of_text(text: str) -> tuple[list[Pair], Grid]:
    """What `text_of_task` wrote; `InputError` for text that is no task."""
    *examples, test = text.split("\n\n")
    demonstrations = []
    for example in examples:
        match = re.fullmatch(r"Example \d+\nInput:\n(.+)\nOutput:\n(.+)", example, re.DOTALL)
        if match is None:
            raise InputError(f"{example!r} is no example of a task: expected Input: and Output:")
        demonstrations.append((grid_of_text(match[1]), grid_of_text(match[2])))
    match = re.fullmatch(r"Test\nInput:\n(.+)\nOutput:\s*", test, re.DOTALL)
    if match is None:
        raise InputError(f"{test!r} is no test of a task: expected Test, Input: and an open Output:")
    return demonstrations, grid_of_text(match[1])
