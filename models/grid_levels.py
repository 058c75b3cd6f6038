"""Coarser and finer views of a grid of cells: averages that leave PAD out, copies, targets, where cells stand.

A level is a grid ``(rows, columns)`` that divides the finest one; each of its cells stands for a block of cells there.
Cells are flattened row by row, as everywhere.

    coarse, there = pooled(x, inputs != PAD, (3, 3), (9, 9))      # [B, 9, D], [B, 9]
    finer = spread(coarse, (3, 3), (9, 9))                        # [B, 81, D]
    targets = coarse_targets(labels, (3, 3), (9, 9), classes=11)  # [B, 9]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from models.losses import IGNORE_LABEL_ID

Grid = tuple[int, int]

PAD = 0  # the token around a grid that is smaller than its rows of data, in every data set

# Waves across the grid by which positions are told, besides the coordinates themselves.
WAVES = (1, 2, 4, 8)
POSITION_FEATURES = 5 + 4 * len(WAVES)

# Sides of coarse levels, all that divide the grid; for a grid that neither divides, the first of FALLBACK that does.
COARSE_SIDES, FALLBACK = (3, 6), (2, 1)


def default_levels(cells: int) -> list[Grid]:
    """From coarse to fine: 3x3 and 6x6 as far as they divide the square grid of `cells`, and that grid; 2x2, or the
    whole as one cell, where neither does. ValueError for a grid that is no square."""
    side = math.isqrt(cells)
    if side * side != cells:
        raise ValueError(f"{cells} cells are no square grid, so its levels must be given: arch.levels=[[2,3],[4,6]]")
    proper = [n for n in range(1, side) if side % n == 0]
    coarse = [n for n in COARSE_SIDES if n in proper] or [n for n in FALLBACK if n in proper][:1]
    return [(n, n) for n in (*coarse, side)]


def check_levels(levels: Sequence[Grid], cells: int | None = None) -> None:
    """ValueError unless each level divides the next and is smaller, and the last has `cells`, where those are known."""
    for coarse, fine in pairwise(levels):
        if any(n % m for m, n in zip(coarse, fine, strict=True)) or coarse == fine:
            raise ValueError(
                f"arch.levels: {name_of(coarse)} does not divide {name_of(fine)} into more cells, and every level must "
                "divide the next: as in [[3,3],[6,6],[30,30]]"
            )
    if cells is not None and math.prod(levels[-1]) != cells:
        raise ValueError(
            f"arch.levels ends with {name_of(levels[-1])}, which is {math.prod(levels[-1])} cells, and the data has "
            f"{cells}: end with its grid, or leave arch.levels=null"
        )


def name_of(grid: Grid) -> str:
    return f"{grid[0]}x{grid[1]}"


def _in_blocks(cells: Tensor, coarse: Grid, fine: Grid) -> Tensor:
    """[B, cells of fine, ...] as [B, rows, block rows, columns, block columns, ...] of the coarse grid."""
    (rows, columns), (height, width) = coarse, fine
    return cells.view(len(cells), rows, height // rows, columns, width // columns, *cells.shape[2:])


def pooled(x: Tensor, valid: Tensor, coarse: Grid, fine: Grid) -> tuple[Tensor, Tensor]:
    """The mean of x [B, cells of fine, D] over the `valid` cells (bool [B, cells of fine]) of every block, 0 for one
    without any, and which blocks have some: [B, cells of coarse, D] and bool [B, cells of coarse]."""
    kept = torch.where(valid.unsqueeze(-1), x, 0)
    counts = _in_blocks(valid, coarse, fine).sum((2, 4)).flatten(1)
    sums = _in_blocks(kept, coarse, fine).sum((2, 4)).flatten(1, 2)
    return sums / counts.clamp_min(1).unsqueeze(-1).to(x.dtype), counts > 0


def spread(x: Tensor, coarse: Grid, fine: Grid) -> Tensor:
    """Every cell of x [B, cells of coarse, D] copied to the cells of its block: [B, cells of fine, D]."""
    (rows, columns), (height, width) = coarse, fine
    blocks = x.view(len(x), rows, 1, columns, 1, -1).expand(-1, -1, height // rows, -1, width // columns, -1)
    return blocks.reshape(len(x), height * width, -1)


def coarse_targets(labels: Tensor, coarse: Grid, fine: Grid, classes: int) -> Tensor:
    """What a coarse cell should say of its block of `labels` [B, cells of fine]: int64 [B, cells of coarse].

    The token that more than half of its labelled cells have; `classes`, for "mixed", if there is none; PAD where no
    cell is labelled. All ignored in a row without any label.
    """
    tokens = torch.arange(classes, device=labels.device)
    counts = _in_blocks((labels.unsqueeze(-1) == tokens).to(torch.int32), coarse, fine).sum((2, 4)).flatten(1, 2)
    labelled = counts.sum(-1)
    most, token = counts.max(-1)
    target = torch.where(2 * most > labelled, token, classes)
    target = torch.where(labelled == 0, PAD, target)
    return torch.where((labelled > 0).any(-1, keepdim=True), target, IGNORE_LABEL_ID)


def cell_centres(grid: Grid, fine: Grid) -> Tensor:
    """Row and column, in units of cells of `fine`, of the middle of every cell of `grid`: fp32 [cells of grid, 2]."""
    middles = [(torch.arange(n, dtype=torch.float32) + 0.5) * (m / n) - 0.5 for n, m in zip(grid, fine, strict=True)]
    return torch.cartesian_prod(*middles).view(-1, 2)


def position_features(grid: Grid, fine: Grid) -> Tensor:
    """Where the cells of `grid` stand and how large they are, fp32 [cells of grid, POSITION_FEATURES].

    One, the logarithms of a block's height and width as shares of the grid's, the coordinates of its middle in (-1, 1),
    and sine and cosine of `WAVES` waves of them (Fourier features, Tancik et al. 2020).
    """
    place = (cell_centres(grid, fine) + 0.5) / torch.tensor(fine)
    size = torch.tensor([1.0, -math.log2(grid[0]) / 4, -math.log2(grid[1]) / 4]).expand(len(place), -1)
    angles = 2 * math.pi * torch.cat([wave * place for wave in WAVES], dim=-1)
    return torch.cat((size, 2 * place - 1, angles.sin(), angles.cos()), dim=-1)
