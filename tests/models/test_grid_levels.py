"""Grids of several resolutions, against loops over their cells."""

from __future__ import annotations

import math

import pytest
import torch

from models.grid_levels import (
    PAD,
    POSITION_FEATURES,
    Grid,
    cell_centres,
    check_levels,
    coarse_targets,
    default_levels,
    pooled,
    position_features,
    spread,
)

LEVELS = [((1, 1), (4, 6)), ((2, 3), (4, 6)), ((2, 1), (4, 6)), ((4, 6), (4, 6))]


def cells_of(block: int, coarse: Grid, fine: Grid) -> list[int]:
    """Indices of the fine cells of a coarse one."""
    (rows, columns), (height, width) = coarse, fine
    row, column = divmod(block, columns)
    in_rows = range(row * height // rows, (row + 1) * height // rows)
    in_columns = range(column * width // columns, (column + 1) * width // columns)
    return [r * width + c for r in in_rows for c in in_columns]


@pytest.mark.parametrize(("coarse", "fine"), LEVELS)
def test_means_are_of_the_valid_cells_of_a_block(coarse: Grid, fine: Grid) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 24, 5, generator=generator)
    valid = torch.rand(3, 24, generator=generator) < 0.4
    means, there = pooled(x, valid, coarse, fine)
    for row in range(3):
        for block in range(math.prod(coarse)):
            kept = [x[row, cell] for cell in cells_of(block, coarse, fine) if valid[row, cell]]
            assert there[row, block] == bool(kept)
            expected = torch.stack(kept).mean(0) if kept else torch.zeros(5)
            torch.testing.assert_close(means[row, block], expected)


@pytest.mark.parametrize(("coarse", "fine"), LEVELS)
def test_a_coarse_cell_is_spread_over_its_block(coarse: Grid, fine: Grid) -> None:
    x = torch.randn(2, math.prod(coarse), 3)
    fine_cells = spread(x, coarse, fine)
    for block in range(math.prod(coarse)):
        for cell in cells_of(block, coarse, fine):
            assert torch.equal(fine_cells[:, cell], x[:, block])
    everywhere = torch.ones(2, math.prod(fine), dtype=torch.bool)
    torch.testing.assert_close(pooled(fine_cells, everywhere, coarse, fine)[0], x)


@pytest.mark.parametrize("garbage", [1e30, math.inf, math.nan])
def test_a_border_of_pad_changes_nothing(garbage: float) -> None:
    """A 3x5 grid in the corner of 6x6: what lies in the border is not read, neither values nor gradients."""
    inputs = torch.full((1, 6, 6), PAD)
    inputs[:, :3, :5] = 4
    valid = (inputs != PAD).flatten(1)
    x = torch.randn(1, 36, 4)
    polluted = torch.where(valid.unsqueeze(-1), x, garbage).requires_grad_()
    (clean, there), (found, same) = (pooled(part, valid, (3, 3), (6, 6)) for part in (x, polluted))
    assert torch.equal(clean, found) and torch.equal(there, same)
    assert there.tolist() == [[True] * 6 + [False] * 3]
    assert not found[0, 6:].any()
    torch.testing.assert_close(found[0, 2], x[0, [4, 10]].mean(0))  # two of its four cells are there
    found.sum().backward()
    assert polluted.grad is not None and not polluted.grad[~valid].any() and polluted.grad[valid].all()


def test_targets_by_hand() -> None:
    labels = torch.tensor(
        [
            [2, 2, 3, 3],
            [2, 3, 4, 4],  # three of four; a tie is mixed
            [-100, -100, -100, -100],
            [-100, 5, -100, -100],  # one labelled cell is a majority; none is PAD
        ]
    ).view(1, 16)
    assert coarse_targets(labels, (2, 2), (4, 4), classes=6).tolist() == [[2, 6, 5, PAD]]
    assert coarse_targets(labels, (4, 4), (4, 4), classes=6).tolist() == [labels.clamp_min(PAD)[0].tolist()]
    assert coarse_targets(torch.full((1, 16), -100), (2, 2), (4, 4), classes=6).tolist() == [[-100] * 4]


def test_targets_against_counting() -> None:
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(1, 4, (20, 24), generator=generator, dtype=torch.int32)
    labels[torch.rand(20, 24, generator=generator) < 0.5] = -100
    found = coarse_targets(labels, (2, 3), (4, 6), classes=4)
    kinds = set()
    for row in range(20):
        for block in range(6):
            tokens = [int(labels[row, cell]) for cell in cells_of(block, (2, 3), (4, 6)) if labels[row, cell] != -100]
            majority = [token for token in tokens if 2 * tokens.count(token) > len(tokens)]
            expected = PAD if not tokens else majority[0] if majority else 4
            assert found[row, block] == expected
            kinds.add(expected)
    assert kinds == {PAD, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("cells", "levels"),
    [
        (900, [(3, 3), (6, 6), (30, 30)]),
        (81, [(3, 3), (9, 9)]),
        (36, [(3, 3), (6, 6)]),
        (16, [(2, 2), (4, 4)]),
        (9, [(1, 1), (3, 3)]),
        (49, [(1, 1), (7, 7)]),
        (1, [(1, 1)]),
    ],
)
def test_levels_that_are_not_named(cells: int, levels: list[Grid]) -> None:
    assert default_levels(cells) == levels
    check_levels(levels, cells)


def test_levels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="no square grid, so its levels must be given"):
        default_levels(24)
    for levels in ([(2, 3), (4, 4)], [(3, 3), (3, 3)], [(4, 4), (2, 2)]):
        with pytest.raises(ValueError, match=f"{levels[0][0]}x{levels[0][1]} does not divide {levels[1][0]}x"):
            check_levels(levels)
    with pytest.raises(ValueError, match="ends with 6x6, which is 36 cells, and the data has 81"):
        check_levels([(3, 3), (6, 6)], 81)
    check_levels([(1, 2), (4, 6)], 24)


def test_where_cells_stand() -> None:
    assert cell_centres((2, 3), (2, 3)).tolist() == [[r, c] for r in (0, 1) for c in (0, 1, 2)]
    assert cell_centres((2, 1), (4, 6)).tolist() == [[0.5, 2.5], [2.5, 2.5]]
    coarse, fine = position_features((2, 2), (4, 4)), position_features((4, 4), (4, 4))
    assert coarse.shape == (4, POSITION_FEATURES) and fine.shape == (16, POSITION_FEATURES)
    assert coarse[:, 3:5].tolist() == [[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]]
    assert len({tuple(cell) for cell in (*coarse.tolist(), *fine.tolist())}) == 20  # no two alike
    torch.testing.assert_close(fine[:, 5:13].square() + fine[:, 13:].square(), torch.ones(16, 8))
