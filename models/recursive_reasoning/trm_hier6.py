"""TRM with six scratchpads, one for each L-step of a cycle.

The "multi-scale z" of the TRM paper's Table 2: 77.6 % on Sudoku-Extreme against 87.4 %.

Step i reads the sum of all six and writes only the i-th.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field
from torch import Tensor

from models.act import ACTModel
from models.inner import RecursiveInner
from models.layers import CosSin
from models.recursive_reasoning.trm import TinyRecursiveReasoningModel_ACTV1Config


class TinyRecursiveReasoningModel_Hier6Config(TinyRecursiveReasoningModel_ACTV1Config):
    H_layers: Literal[0] = 0  # one network in both roles
    L_cycles: int = Field(6, gt=0, le=6)  # one latent for each; with fewer, the rest stay as they were reset


@dataclass
class TinyRecursiveReasoningModel_ACTV1InnerCarry:
    """Latents, each [batch, latent_length, hidden_size]."""

    z_H: Tensor
    z_L1: Tensor
    z_L2: Tensor
    z_L3: Tensor
    z_L4: Tensor
    z_L5: Tensor
    z_L6: Tensor


class TinyRecursiveReasoningModel_ACTV1_Inner(RecursiveInner):
    carry_class = TinyRecursiveReasoningModel_ACTV1InnerCarry

    def __init__(self, config: TinyRecursiveReasoningModel_Hier6Config):
        super().__init__(config)
        self.L_level = self.build_level(config.L_layers)

    def cycle(self, carry: TinyRecursiveReasoningModel_ACTV1InnerCarry, x: Tensor, cos_sin: CosSin | None):
        z_H, *z_L = (getattr(carry, name) for name in self.latent_names())
        for step in range(self.config.L_cycles):
            z_L[step] = self.L_level(sum(z_L), z_H + x, cos_sin)
        return self.carry_class(self.L_level(z_H, sum(z_L), cos_sin), *z_L)


class TinyRecursiveReasoningModel_ACTV1(ACTModel):
    config_class = TinyRecursiveReasoningModel_Hier6Config
    inner_class = TinyRecursiveReasoningModel_ACTV1_Inner
