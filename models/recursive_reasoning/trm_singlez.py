"""TRM with a single latent: answer and scratchpad share z_L.

The "single z" of the TRM paper's Table 2: 71.9 % on Sudoku-Extreme against 87.4 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.act import ACTModel
from models.inner import RecursiveInner
from models.layers import CosSin
from models.recursive_reasoning.trm import TinyRecursiveReasoningModel_ACTV1Config


class TinyRecursiveReasoningModel_SingleZConfig(TinyRecursiveReasoningModel_ACTV1Config):
    H_layers: Literal[0] = 0  # one latent, one network


@dataclass
class TinyRecursiveReasoningModel_ACTV1InnerCarry:
    """The latent [batch, latent_length, hidden_size]."""

    z_L: Tensor


class TinyRecursiveReasoningModel_ACTV1_Inner(RecursiveInner):
    carry_class = TinyRecursiveReasoningModel_ACTV1InnerCarry

    def __init__(self, config: TinyRecursiveReasoningModel_SingleZConfig):
        super().__init__(config)
        self.L_level = self.build_level(config.L_layers)

    def cycle(self, carry: TinyRecursiveReasoningModel_ACTV1InnerCarry, x: Tensor, cos_sin: CosSin | None):
        z = carry.z_L
        for _ in range(self.config.L_cycles):
            z = self.L_level(z, x, cos_sin)
        return self.carry_class(self.L_level(z, torch.zeros_like(z), cos_sin))

    def answer(self, carry: TinyRecursiveReasoningModel_ACTV1InnerCarry) -> Tensor:
        return carry.z_L


class TinyRecursiveReasoningModel_ACTV1(ACTModel):
    config_class = TinyRecursiveReasoningModel_SingleZConfig
    inner_class = TinyRecursiveReasoningModel_ACTV1_Inner
