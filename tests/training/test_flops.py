"""Operations of a training step, against counting applications of the levels by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models import load_class
from tests.models.test_models import ARCHITECTURES
from training.flops import step_flops

SHAPE: dict[str, Any] = {
    "batch_size": 1,
    "seq_len": 36,
    "vocab_size": 8,
    "num_puzzle_identifiers": 2,
    "hidden_size": 64,
}
SHAPE |= {"num_heads": 2, "puzzle_emb_ndim": 64, "halt_max_steps": 4, "forward_dtype": "float32"}
SIZE, INNER = 64, 256


def block(tokens: int) -> int:
    """A block with attention: four projections, attention itself, a gated MLP of 256."""
    return 2 * tokens * (4 * SIZE**2 + 3 * SIZE * INNER) + 4 * tokens**2 * SIZE


def counted(arch: str, **changes: Any) -> float:
    with torch.device("meta"):
        model = load_class(ARCHITECTURES[arch])(SHAPE | changes)
    return step_flops(SimpleNamespace(model=SimpleNamespace(model=model)))


# Applications without gradients count once, those with gradients three times.
@pytest.mark.parametrize(
    ("arch", "changes", "applications"),
    [
        ("trm", {"H_cycles": 3, "L_cycles": 2, "puzzle_emb_len": 1}, 2 * 3 + 3 * 3),
        # The continue head's second pass has no gradients.
        ("trm", {"H_cycles": 3, "L_cycles": 2, "puzzle_emb_len": 1, "no_ACT_continue": False}, 6 + 9 + 9),
        # One L-step and one H-step carry gradients, and there is a second pass.
        ("hrm", {"H_cycles": 2, "L_cycles": 2, "H_layers": 2, "L_layers": 2}, 4 + 3 * 2 + 6),
        ("transformers_baseline", {"H_layers": 2}, 3),
        ("trm_singlez", {"H_cycles": 1, "L_cycles": 3, "puzzle_emb_len": 1}, 3 * 4),
    ],
)
def test_applications_are_counted_with_their_backward_passes(
    arch: str, changes: dict[str, Any], applications: int
) -> None:
    read_out = 3 * 2 * SIZE * (36 * 8 + 2)
    assert counted(arch, **changes) == pytest.approx(2 * applications * block(37) + read_out, rel=0.01)


def test_coarse_levels_are_counted() -> None:
    cycles = {"H_cycles": 2, "L_cycles": 2, "puzzle_emb_len": 1}
    levels = {"levels": [[2, 2], [6, 6]]}
    added = counted("trm_hierarchical_diffusion", **cycles, **levels) - counted("trm", **cycles)
    exchange = 3 * 2 * SIZE**2 * (5 + 5)  # down and up
    position = 2 * 2 * 21 * SIZE * (4 + 36)
    heads = 3 * 2 * SIZE * (4 * 9 + 1)
    assert added == pytest.approx(2 * (3 + 3 * 3) * block(5) + exchange + position + heads, rel=0.01)
    assert counted("trm_hierarchical_diffusion", **cycles, levels=[[6, 6]]) == counted("trm", **cycles)
