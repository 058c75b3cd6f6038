"""Cropping at the EOS border, the loss that teaches it, exact matches, and grids as text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datasets.common import ARC_EOS, ARC_PAD, InputError
from hybrid_pipeline.grids import (
    compute_exact_match,
    compute_loss_with_crop,
    crop_grid_from_eos,
    grid_of_text,
    task_of_text,
    text_of_grid,
    text_of_task,
    tokens_of_grid,
    visualize_grid,
)

GRID = np.array([[1, 0, 2], [3, 4, 5]], np.uint8)


def test_tokens_have_the_border_of_the_data_sets() -> None:
    expected = [[3, 2, 4, 1], [5, 6, 7, 1], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert tokens_of_grid(GRID, 4).reshape(4, 4).tolist() == expected
    assert tokens_of_grid(GRID[:, :2], 2).reshape(2, 2).tolist() == [[3, 2], [5, 6]]
    with pytest.raises(InputError, match="2x3"):
        tokens_of_grid(GRID, 2)


def test_a_crop_gives_back_the_grid_whatever_its_shape() -> None:
    """The seeds' decoder cut at the first row or column that holds any EOS, and so at row 0."""
    draws = np.random.default_rng(0)
    for rows in range(1, 6):
        for columns in range(1, 6):
            grid = draws.integers(0, 10, (rows, columns)).astype(np.uint8)
            for tokens in (tokens_of_grid(grid, 5), torch.from_numpy(tokens_of_grid(grid, 5))):
                assert np.array_equal(crop_grid_from_eos(tokens), grid)
    assert crop_grid_from_eos(np.full(16, ARC_PAD)).shape == (0, 0)


def test_an_unclosed_grid_is_another_grid() -> None:
    target = tokens_of_grid(GRID, 4)
    open_ended = np.where(target == ARC_EOS, 2, target)
    wrong = target.copy()
    wrong[0] = 9
    beyond = target.copy()
    beyond[-1] = 5  # a colour beyond the border is no part of the answer
    found = compute_exact_match(np.stack([target, open_ended, wrong, beyond]), np.stack([target] * 4))
    assert found.tolist() == [True, False, False, True]
    assert compute_exact_match(np.zeros((1, 16)), np.zeros((1, 16))).tolist() == [False]


def test_the_loss_teaches_the_border_and_leaves_out_the_rest() -> None:
    target = torch.from_numpy(tokens_of_grid(GRID, 4)).unsqueeze(0)
    logits = torch.zeros(1, 16, 12, requires_grad=True)
    compute_loss_with_crop(logits, target).backward()
    assert logits.grad is not None
    touched = logits.grad.abs().sum(-1)[0] > 0
    assert torch.equal(touched, target[0] != ARC_PAD) and touched[target[0] == ARC_EOS].all()
    expected = torch.log(torch.tensor(12.0))
    assert torch.isclose(compute_loss_with_crop(logits, target), expected)
    ignored = torch.where(target == ARC_PAD, -100, target)
    assert torch.equal(compute_loss_with_crop(logits, ignored), compute_loss_with_crop(logits, target))


def test_a_batch_without_a_grid_costs_nothing_and_is_no_nan() -> None:
    assert compute_loss_with_crop(torch.randn(2, 16, 12), torch.zeros(2, 16, dtype=torch.int32)) == 0


def test_a_grid_in_colour() -> None:
    lines = visualize_grid(GRID).splitlines()
    assert len(lines) == 2 and all(line.count("  ") == 3 and line.endswith("\x1b[0m") for line in lines)
    assert lines[0].startswith("\x1b[48;2;0;116;217m")  # colour 1 is blue


def test_text_and_back() -> None:
    assert text_of_grid(GRID) == "1 0 2\n3 4 5" and np.array_equal(grid_of_text("1 0 2\n3 4 5"), GRID)
    demonstrations = [(GRID, GRID.T.copy()), (GRID[:1], GRID[1:])]
    text = text_of_task(demonstrations, GRID[:, :1])
    found, test_input = task_of_text(text)
    assert np.array_equal(test_input, GRID[:, :1]) and len(found) == 2
    for pair, wanted in zip(found, demonstrations, strict=True):
        assert all(np.array_equal(one, other) for one, other in zip(pair, wanted, strict=True))


@pytest.mark.parametrize("text", ["", "1 2\n3", "1 x", "12 3"])
def test_text_that_is_no_grid(text: str) -> None:
    with pytest.raises(InputError, match="no grid"):
        grid_of_text(text)


@pytest.mark.parametrize("text", ["Test\nInput:\n1", "Example 1\nInput:\n1\n\nTest\nInput:\n1\nOutput:"])
def test_text_that_is_no_task(text: str) -> None:
    with pytest.raises(InputError, match=r"no (test|example)"):
        task_of_text(text)
