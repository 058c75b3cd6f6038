"""Diffusion-9160: denoises all latents of an H-cycle at once, named after ARC's (3 + 7) blocks of 916 tokens.

The sequence is [x | y_init | z_init | n noisy blocks], each block P tokens. A block's role is told by a learned
embedding and by the projection of its kind (x, y, z, noisy), a token's place in it by RoPE over 0..P-1. The condition
blocks are dropped at the end. Targets: ``h_cycle``, the blocks z_1 .. z_L, y_next; or ``jump``, the blocks y_K, z_K:
the state after a later ACT step K.

Full attention over (3 + n) P tokens costs more than the H-cycle it replaces. By default layers alternate between
attention over the positions of each block and attention over the blocks at each position, as video models do (Latte, Ma
et al. 2024).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.diffusion_blocks import (
    DiffusionHead,
    HeadConfig,
    Mixing,
    ModulatedBlock,
    ModulatedConfig,
    Normalizer,
    Output,
    Process,
    TimeConditioning,
    build_rotary,
)
from models.layers import CastedLinear, trunc_normal_init_

CONDITION_BLOCKS = 3


class TrajectoryConfig(HeadConfig):
    num_layers: int = Field(6, gt=0)
    target_kind: Literal["h_cycle", "jump"] = "h_cycle"

    @model_validator(mode="after")
    def _check_blocks(self) -> TrajectoryConfig:
        if self.target_kind == "jump" and self.target_blocks != 2:
            raise ValueError(f"a jump has the 2 target blocks y and z, not target_blocks={self.target_blocks}")
        return self


class Diffusion9160Config(ModulatedConfig, TrajectoryConfig):
    attention: Literal["alternating", "full"] = "alternating"
    # What a noisy block holds at first: state, also projections of x, of the latent that it is to replace and of the
    # other one; noise, nothing but itself, as in S0, so that the first layers are spent on fetching those.
    start: Literal["state", "noise"] = "state"
    # How often the layers are applied, each time to what they made and what the blocks held at first, as the teacher's
    # level is. A layer across blocks then comes before two within them: what the block before holds, and the update.
    loops: int = Field(default=1, gt=0)

    @model_validator(mode="after")
    def _check_mixing(self) -> Diffusion9160Config:
        if self.attention == "full" and self.token_mixing == "mlp":
            raise ValueError(
                "diffusion.attention=full cannot go with diffusion.token_mixing=mlp, which mixes within a block only: "
                "use attention=alternating"
            )
        if self.attention == "alternating" and self.num_layers < 2:
            raise ValueError(
                f"diffusion.num_layers={self.num_layers} has no layer that looks across blocks: use 2 or more, or "
                "diffusion.attention=full"
            )
        return self

    @property
    def mixes_by_mlp(self) -> bool:
        return self.attention != "full" and super().mixes_by_mlp


class Stem(nn.Module):
    """noisy [B, n P, D] of `types` [B, n] and the conditions [B, P, D] to h [B, 3 + n, P, D] in the forward dtype."""

    def __init__(self, config: Diffusion9160Config):
        super().__init__()
        self.config = config
        size = config.latent_size
        self.noisy_proj = CastedLinear(size, size, bias=False)
        self.condition_proj = nn.ModuleList(CastedLinear(size, size, bias=False) for _ in range(CONDITION_BLOCKS))
        if config.start == "state":
            self.start_x_proj, self.start_latent_proj, self.start_other_proj = (
                CastedLinear(size, size, bias=False) for _ in range(3)
            )
        # As strong as the content: the noisy blocks differ in nothing else at high noise.
        roles = CONDITION_BLOCKS + config.target_blocks
        self.role_embedding = nn.Parameter(trunc_normal_init_(torch.empty(roles, size), std=1))

    def forward(self, noisy: Tensor, conditions: tuple[Tensor, ...], types: Tensor) -> Tensor:
        blocks = noisy.unflatten(1, (self.config.target_blocks, -1)).to(self.config.dtype)
        projected = [proj(z).unsqueeze(1) for proj, z in zip(self.condition_proj, conditions, strict=True)]
        noisy_blocks = self.noisy_proj(blocks)
        if self.config.start == "state":
            x, y_init, z_init = (z[:, None] for z in conditions)
            for_y = self.start_latent_proj(y_init) + self.start_other_proj(z_init)
            for_z = self.start_latent_proj(z_init) + self.start_other_proj(y_init)
            noisy_blocks = noisy_blocks + self.start_x_proj(x)
            noisy_blocks = noisy_blocks + torch.where(types[:, :, None, None] == 1, for_y, for_z)
        h = torch.cat((*projected, noisy_blocks), dim=1)
        return h + self.role_embedding[:, None, :].to(h.dtype)


class TrajectoryHead(DiffusionHead):
    """A head for several latents of a trajectory at once."""

    config_class = TrajectoryConfig
    config: TrajectoryConfig
    block_types: Tensor

    def __init__(self, config: dict[str, Any], process: Process, normalizer: Normalizer):
        super().__init__(config, process, normalizer)
        self.register_buffer("block_types", self.target_types(), persistent=False)

    def target_types(self) -> Tensor:
        """Types of the target blocks, int64 [n]: 0 for a z, 1 for a y."""
        if self.config.target_kind == "jump":
            return torch.tensor([1, 0])
        return torch.tensor([0] * (self.config.target_blocks - 1) + [1])

    def default_types(self, batch: int, conditions: tuple[Tensor, ...]) -> Tensor:
        return self.block_types.expand(batch, -1)


class Diffusion9160(TrajectoryHead):
    """Conditions: (x, y_init, z_init), each [B, P, D]; noisy and outputs [B, n P, D], n = `target_blocks`."""

    config_class = Diffusion9160Config
    config: Diffusion9160Config

    def __init__(self, config: dict[str, Any], process: Process, normalizer: Normalizer):
        super().__init__(config, process, normalizer)
        settings = self.config
        sequence_blocks = CONDITION_BLOCKS + settings.target_blocks if settings.attention == "full" else 1
        self.rotary = None if settings.mixes_by_mlp else build_rotary(settings, sequence_blocks)
        self.time = TimeConditioning(settings.latent_size)
        self.stem = Stem(settings)
        within: Mixing = "mlp" if settings.mixes_by_mlp else "space"
        order: tuple[Mixing, ...] = (within, "steps") if settings.loops == 1 else ("steps", within, within)
        if settings.attention == "full":
            order = ("all",)
        self.layers.extend(ModulatedBlock(settings, order[i % len(order)]) for i in range(settings.num_layers))
        self.output = Output(settings)

    def units(self) -> list[nn.Module]:
        return [self.stem, *self.layers, self.output]

    def denoise(self, noisy: Tensor, t: Tensor, conditions: tuple[Tensor, ...], types: Tensor) -> Tensor:
        c = self.time(t)
        h = start = self.stem(noisy, conditions, types)
        cos_sin = None if self.rotary is None else self.rotary()
        for _ in range(self.config.loops - 1):
            h = self.through_layers(h, c, cos_sin) + start
        h = self.through_layers(h, c, cos_sin, drop=CONDITION_BLOCKS)
        return self.output(h, c)
