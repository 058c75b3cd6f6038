"""The Hierarchical Reasoning Model (Wang et al. 2025): separate networks for z_H and z_L and a one-step gradient.

Only the last L-step and the last H-step carry gradients, and a row halts once the halt head beats the continue head,
which is trained on the value of going on (hence the second pass that the ACT wrapper makes in training).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from models.act import ACTConfig, ACTModel
from models.inner import RecursiveInner
from models.layers import CosSin


class HierarchicalReasoningModel_ACTV1Config(ACTConfig):
    H_cycles: int = Field(2, gt=0)
    L_cycles: int = Field(2, gt=0)
    H_layers: int = Field(4, gt=0)
    L_layers: int = Field(4, gt=0)
    no_ACT_continue: bool = False


@dataclass
class HierarchicalReasoningModel_ACTV1InnerCarry:
    """Latents, each [batch, latent_length, hidden_size]."""

    z_H: Tensor
    z_L: Tensor


class HierarchicalReasoningModel_ACTV1_Inner(RecursiveInner):
    carry_class = HierarchicalReasoningModel_ACTV1InnerCarry

    def __init__(self, config: HierarchicalReasoningModel_ACTV1Config):
        super().__init__(config)
        self.H_level = self.build_level(config.H_layers)
        self.L_level = self.build_level(config.L_layers)

    def cycle(
        self,
        carry: HierarchicalReasoningModel_ACTV1InnerCarry,
        x: Tensor,
        cos_sin: CosSin | None,
        z_L_list: list[Tensor] | None = None,
    ):
        z_L = carry.z_L
        for step in range(self.config.L_cycles):
            with torch.set_grad_enabled(torch.is_grad_enabled() and step == self.config.L_cycles - 1):
                z_L = self.L_level(z_L, carry.z_H + x, cos_sin)
            if z_L_list is not None:
                z_L_list.append(z_L.detach())
        return self.carry_class(self.H_level(carry.z_H, z_L, cos_sin), z_L)


class HierarchicalReasoningModel_ACTV1(ACTModel):
    config_class = HierarchicalReasoningModel_ACTV1Config
    inner_class = HierarchicalReasoningModel_ACTV1_Inner
