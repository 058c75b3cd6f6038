"""The latents that a trained model ends with, level by level, and which of their places stand for a cell.

A TRM has one level. The coarse-to-fine model has one for each of its grids, from coarse to fine, so that level -1 is
that of the answer in both.

Usage: ``z, mask = final_latents(model, batch, level=-1)``
"""

from __future__ import annotations

import torch
from torch import Tensor

from datasets.common import InputError
from models.act import ACTModel
from models.grid_levels import PAD, pooled
from models.recursive_reasoning.trm_hierarchical_diffusion import HierarchicalDiffusionCarry


def level_lengths(model: ACTModel) -> list[int]:
    """Positions of every level's latents, the finest last."""
    return [*getattr(model.inner, "lengths", []), model.config.latent_length]


def check_level(model: ACTModel, level: int) -> None:
    """`InputError` where the model has no such level."""
    count = len(level_lengths(model))
    if not -count <= level < count:
        raise InputError(
            f"level={level}: the model has {count}, from 0 (the coarsest) to {count - 1}, or -1 (the last)"
        )


@torch.no_grad()
def final_latents(model: ACTModel, batch: dict[str, Tensor], level: int = -1) -> tuple[Tensor, Tensor]:
    """z_H of a level after the last ACT step, fp32 [batch, positions, hidden_size], and the positions to read, bool.

    Those are the puzzle's tokens and the cells that are not PAD in the input; a coarse cell counts where any cell of
    its block does.
    """
    carry = model.initial_carry(batch)
    for _ in range(model.config.halt_max_steps):
        carry, _ = model(carry=carry, batch=batch)
    return latents_of(carry.inner_carry, level_lengths(model), level), places_to_read(model, batch["inputs"], level)


def latents_of(carry: object, lengths: list[int], level: int) -> Tensor:
    """z_H of one level of an inner carry, fp32."""
    finest: Tensor = carry.z_H  # type: ignore[attr-defined]
    if not isinstance(carry, HierarchicalDiffusionCarry) or len(lengths) == 1:
        return finest.float()
    return [*carry.coarse_z_H.split(lengths[:-1], dim=1), finest][level].float()


def places_to_read(model: ACTModel, inputs: Tensor, level: int) -> Tensor:
    """Bool [batch, positions] of the level."""
    valid = inputs != PAD
    grids = getattr(model.inner, "grids", [None])
    if grids[level] is not grids[-1]:
        _, valid = pooled(valid.unsqueeze(-1).float(), valid, grids[level], grids[-1])
    return torch.nn.functional.pad(valid, (model.config.puzzle_tokens, 0), value=True)
