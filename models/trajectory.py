"""What the recursion passed through: every latent of an ACT step, by reference.

    carry, outputs = model(carry=carry, batch=batch, store_diffusion_trajectory=True)
    z_L, z_H = outputs["trajectory"]["all_h_cycles"][0]["z_L_list"], outputs["trajectory"]["all_h_cycles"][0]["z_H"]

Recording keeps references to tensors that the forward pass makes anyway, detached: nothing else is computed, copied or
differentiated because of it. `store_diffusion_trajectory` is true, or the ACT steps that are wanted.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypedDict

import torch
from torch import Tensor

# The two latents whose updates are recorded; an architecture with others has no such trajectory.
RECORDED_LATENTS = ("z_H", "z_L")


class HCycle(TypedDict):
    """One H-cycle. All tensors are [batch, latent_length, hidden_size] in the forward dtype.

    `z_L_list`: the L_cycles values of z_L, in order; `z_H`: the value it ends with; `input_embeddings`: x, which is
    one and the same tensor in all H-cycles of a call.
    """

    z_L_list: list[Tensor]
    z_H: Tensor
    input_embeddings: Tensor


class Trajectory(TypedDict):
    """One ACT step of a batch.

    `initial_z_H`, `initial_z_L`: the latents that it started from; `steps` int32 [batch]: which ACT step this was for
    each row, from 1; `rows` bool [batch]: those whose step was asked for.
    """

    all_h_cycles: list[HCycle]
    initial_z_H: Tensor
    initial_z_L: Tensor
    steps: Tensor
    rows: Tensor


def check_recordable(model: Any) -> None:
    """ValueError naming the architecture unless its latents are z_H and z_L."""
    names = model.inner.latent_names()
    if set(names) != set(RECORDED_LATENTS):
        raise ValueError(
            f"{type(model).__module__.rpartition('.')[2]}@{type(model).__name__} has the latents {', '.join(names)}, "
            "but a diffusion trajectory is made of z_H and z_L: use recursive_reasoning.trm or recursive_reasoning.hrm"
        )


def make_trajectory(
    initial: Any, all_h_cycles: list[HCycle], steps: Tensor, wanted: bool | Collection[int]
) -> Trajectory:
    """The record of the ACT step `steps` int32 [batch] that began with the latents `initial`."""
    rows = torch.full_like(steps, wanted is True, dtype=torch.bool)
    if not isinstance(wanted, bool):
        for step in wanted:  # numbers, not a tensor of them, which the host would have to send
            rows = rows | (steps == step)
    return {
        "all_h_cycles": all_h_cycles,
        "initial_z_H": initial.z_H.detach(),
        "initial_z_L": initial.z_L.detach(),
        "steps": steps,
        "rows": rows,
    }
