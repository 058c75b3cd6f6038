"""A coarse-to-fine model that listens: every level's cells ask the text with positions of their own.

The finest level hears as a TRM does (`hybrid_pipeline.model`): the text is added to the embedding of every cell. What a
coarse level reads is the mean of that over its blocks and, added to it, what the text says to the block itself.
Only ``injection=input`` is built: puzzle slots are at every level anyway, and the carry cannot be trained.

    model = HybridHierarchicalModel(config)        # as HybridTRMModel
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pydantic import model_validator
from torch import Tensor

from hybrid_pipeline.adapters.text_to_latent import LevelTextToLatentAdapter, TextAdapterConfig
from hybrid_pipeline.model import HybridTRM_Inner, HybridTRMConfig, HybridTRMModel
from models.recursive_reasoning.trm_hierarchical_diffusion import (
    CoarseLevel,
    TRMHierarchicalDiffusion,
    TRMHierarchicalDiffusion_Inner,
    TRMHierarchicalDiffusionConfig,
)


class HybridHierarchicalConfig(HybridTRMConfig, TRMHierarchicalDiffusionConfig):
    @model_validator(mode="after")
    def _check_injection(self) -> HybridHierarchicalConfig:
        if self.injection != "input":
            raise ValueError(f"hybrid.injection={self.injection} is for arch=trm; coarse-to-fine models take input")
        return self

    @property
    def cells(self) -> list[int]:
        """Of every level, from coarse to fine."""
        return [math.prod(grid) for grid in self.grids]

    @property
    def adapter(self) -> TextAdapterConfig:
        return super().adapter.model_copy(update={"places": sum(self.cells)})


class HybridHierarchical_Inner(TRMHierarchicalDiffusion_Inner, HybridTRM_Inner):
    """`TRMHierarchicalDiffusion_Inner.prepare` asks the next class for x, so the finest level's text comes with it."""

    text: LevelTextToLatentAdapter

    def __init__(self, config: HybridHierarchicalConfig):
        super().__init__(config)
        self.heard: tuple[Tensor, Tensor] | None = None  # states and mask of the rows of this step

    def build_adapter(self) -> LevelTextToLatentAdapter:
        return LevelTextToLatentAdapter(self.config.adapter, self.config.cells)

    def said_to_cells(self, states: Tensor, mask: Tensor, cells: Tensor) -> Tensor:
        self.heard = states, mask
        return self.text.at_level(-1, states, mask, cells)

    def _averaged(self, seen: Tensor, valid: Tensor, level: CoarseLevel) -> tuple[Tensor, Tensor]:
        x, there = super()._averaged(seen, valid, level)
        assert self.heard is not None, "the finest level's text comes first"
        tokens, cells = self._parted(x)
        said = self.text.at_level(self.grids.index(level.grid), *self.heard, cells)
        return torch.cat((tokens, cells + said.to(x.dtype)), dim=1), there


class HybridHierarchicalModel(HybridTRMModel, TRMHierarchicalDiffusion):
    config_class: ClassVar[Any] = HybridHierarchicalConfig
    inner_class: ClassVar[Any] = HybridHierarchical_Inner
