"""A plain transformer under the same ACT wrapper: one pass of `H_layers` blocks for each deep-supervision step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from models.act import ACTConfig, ACTModel
from models.inner import RecursiveInner
from models.layers import CosSin
from models.trajectory import HCycle


class Model_ACTV2Config(ACTConfig):
    """The published halting rule compares against a continue logit that nothing trains, and so halts almost at once;
    it stays the default for checkpoints of it. Set ``no_ACT_continue=true`` for a halting head that means something.
    """

    H_cycles: int = Field(1, gt=0)  # accepted for the configurations that name it; there are no cycles to repeat
    H_layers: int = Field(8, gt=0)
    no_ACT_continue: bool = False
    passes_without_gradients: ClassVar[bool] = False
    trains_q_continue: ClassVar[bool] = False
    uneven_heads: ClassVar[bool] = True  # the published configuration has 12 heads


@dataclass
class Model_ACTV2InnerCarry:
    """The latent [batch, latent_length, hidden_size]."""

    z_H: Tensor


class Model_ACTV2_Inner(RecursiveInner):
    carry_class = Model_ACTV2InnerCarry

    def __init__(self, config: Model_ACTV2Config):
        super().__init__(config)
        self.H_level = self.build_level(config.H_layers)

    def recur(
        self,
        carry: Model_ACTV2InnerCarry,
        x: Tensor,
        cos_sin: CosSin | None,
        all_h_cycles: list[HCycle] | None = None,  # never given: there are no H-cycles
    ) -> Model_ACTV2InnerCarry:
        return Model_ACTV2InnerCarry(self.H_level(carry.z_H, x, cos_sin))


class Model_ACTV2(ACTModel):
    config_class = Model_ACTV2Config
    inner_class = Model_ACTV2_Inner
