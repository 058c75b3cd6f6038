"""The Tiny Recursive Model (Jolicoeur-Martineau 2025): one small network refines a scratchpad z_L and an answer z_H.

In an H-cycle, ``z_L <- L(z_L + z_H + x)`` runs L_cycles times, then ``z_H <- L(z_H + z_L)``; L is the same network in
both roles. ``H_layers > 0`` builds a second network for z_H instead, at twice the parameters for H_layers = L_layers
(the paper's ablation finds it worse: 82.4 against 87.4 % on Sudoku-Extreme).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pydantic import Field
from torch import Tensor

from models.act import ACTCarry, ACTConfig, ACTModel
from models.inner import RecursiveInner
from models.layers import CosSin, ReasoningModule


class TinyRecursiveReasoningModel_ACTV1Config(ACTConfig):
    H_cycles: int = Field(3, gt=0)
    L_cycles: int = Field(6, gt=0)
    H_layers: int = Field(0, ge=0)  # 0: z_H is updated by the L_level
    L_layers: int = Field(2, gt=0)
    puzzle_emb_len: int = Field(16, ge=0)


@dataclass
class TinyRecursiveReasoningModel_ACTV1InnerCarry:
    """Latents, each [batch, latent_length, hidden_size]."""

    z_H: Tensor
    z_L: Tensor


def refine(
    carry: TinyRecursiveReasoningModel_ACTV1InnerCarry,
    x: Tensor,
    cos_sin: CosSin | None,
    networks: tuple[ReasoningModule, ReasoningModule],
    L_cycles: int,
    z_L_list: list[Tensor] | None = None,
) -> TinyRecursiveReasoningModel_ACTV1InnerCarry:
    """One H-cycle by the `networks` for z_L and for z_H; every new z_L is appended to `z_L_list`, detached."""
    L_level, H_level = networks
    z_H, z_L = carry.z_H, carry.z_L
    injection = z_H + x
    for _ in range(L_cycles):
        z_L = L_level(z_L, injection, cos_sin)
        if z_L_list is not None:
            z_L_list.append(z_L.detach())
    return replace(carry, z_H=H_level(z_H, z_L, cos_sin), z_L=z_L)


class TinyRecursiveReasoningModel_ACTV1Carry(ACTCarry):
    """The ACT carry around z_H and z_L."""


class TinyRecursiveReasoningModel_ACTV1_Inner(RecursiveInner):
    carry_class = TinyRecursiveReasoningModel_ACTV1InnerCarry

    def __init__(self, config: TinyRecursiveReasoningModel_ACTV1Config):
        super().__init__(config)
        self.L_level = self.build_level(config.L_layers)
        if config.H_layers > 0:
            self.H_level = self.build_level(config.H_layers)

    @property
    def networks(self) -> tuple[ReasoningModule, ReasoningModule]:
        """The network that updates z_L and the one that updates z_H: the same unless H_layers says otherwise."""
        return self.L_level, self.H_level if self.config.H_layers > 0 else self.L_level

    def cycle(
        self,
        carry: TinyRecursiveReasoningModel_ACTV1InnerCarry,
        x: Tensor,
        cos_sin: CosSin | None,
        z_L_list: list[Tensor] | None = None,
    ):
        return refine(carry, x, cos_sin, self.networks, self.config.L_cycles, z_L_list)


class TinyRecursiveReasoningModel_ACTV1(ACTModel):
    config_class = TinyRecursiveReasoningModel_ACTV1Config
    inner_class = TinyRecursiveReasoningModel_ACTV1_Inner
    carry_class = TinyRecursiveReasoningModel_ACTV1Carry
