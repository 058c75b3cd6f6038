"""Diffusion-916: denoises the result of one TRM update, named after ARC's 900 cells and 16 puzzle tokens.

An update is ``z_L <- L(z_L + z_H + x)`` (type 0) or ``z_H <- L(z_H + z_L)`` (type 1). Its inputs fill three slots
(prev, other, x): the latent that is replaced, the other latent, and the input embeddings, where type 1 has a learned
null. Each slot and the noisy target have a projection of their own, so that noise cannot be mistaken for condition;
blocks as the teacher's follow, modulated by timestep and type (adaLN-zero), then a linear output.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.diffusion_blocks import (
    DiffusionHead,
    Mixing,
    ModulatedBlock,
    ModulatedConfig,
    Normalizer,
    Output,
    Process,
    TimeConditioning,
    build_rotary,
)
from models.layers import Block, CastedLinear, ReasoningModule, rms_norm, trunc_normal_init_


class Diffusion916Config(ModulatedConfig):
    # own: a projection for each input. sum: S0's rms_norm(noisy + sum of the conditions + time).
    conditioning: Literal["own", "sum"] = "own"


class Stem(nn.Module):
    """Noisy target and conditions, each [B, P, D], to h [B, 1, P, D] in the forward dtype."""

    def __init__(self, config: Diffusion916Config):
        super().__init__()
        self.config = config
        size = config.latent_size
        self.null_x = nn.Parameter(torch.zeros(size))
        if config.conditioning == "own":
            # Four projections summed are one over the four inputs side by side: [D, 4 D], in the order noisy, prev,
            # other, x. One product, accumulated in fp32.
            self.proj = CastedLinear(4 * size, size, bias=True)

    def forward(self, noisy: Tensor, conditions: tuple[Tensor, ...], types: Tensor, time: Tensor) -> Tensor:
        dtype = self.config.dtype
        prev, other, x = conditions
        x = torch.where(types[:, None, None] == 1, self.null_x.to(dtype), x)
        if self.config.conditioning == "own":
            h = self.proj(torch.cat((noisy.to(dtype), prev, other, x), dim=-1))
        else:
            h = rms_norm(noisy + prev + other + x + time[:, None, :], self.config.rms_norm_eps).to(dtype)
        return h.unsqueeze(1)


class LayerHead(DiffusionHead):
    """A head for single updates."""

    def default_types(self, batch: int, conditions: tuple[Tensor, ...]) -> Tensor:
        """Two conditions are those of a z_H update, three those of a z_L update."""
        return torch.full((batch,), int(len(conditions) == 2), dtype=torch.int64, device=conditions[0].device)


class Diffusion916(LayerHead):
    """Conditions: (prev, other, x), each [B, P, D], with types int64 [B]; or S0's (z_H_prev, z_last), all of type 1."""

    config_class = Diffusion916Config
    config: Diffusion916Config

    def __init__(self, config: dict[str, Any], process: Process, normalizer: Normalizer):
        super().__init__(config, process, normalizer)
        settings = self.config
        self.rotary = None if settings.mixes_by_mlp else build_rotary(settings)
        self.time = TimeConditioning(settings.latent_size)
        self.type_embedding = nn.Parameter(trunc_normal_init_(torch.empty(2, settings.latent_size), std=1))
        self.stem = Stem(settings)
        mixing: Mixing = "mlp" if settings.mixes_by_mlp else "space"
        self.layers.extend(ModulatedBlock(settings, mixing) for _ in range(settings.num_layers))
        self.output = Output(settings)

    def units(self) -> list[nn.Module]:
        return [self.stem, *self.layers, self.output]

    def denoise(self, noisy: Tensor, t: Tensor, conditions: tuple[Tensor, ...], types: Tensor) -> Tensor:
        if len(conditions) == 2:
            conditions = (*conditions, torch.zeros_like(conditions[0]))
        time = self.time(t)
        is_answer = types[:, None] == 1
        c = time + torch.where(is_answer, self.type_embedding[1], self.type_embedding[0])
        h = self.stem(noisy, conditions, types, time)
        h = self.through_layers(h, c, None if self.rotary is None else self.rotary())
        return self.output(h, c)

    @torch.no_grad()
    def init_from_level(self, level: ReasoningModule) -> None:
        """Become the teacher's update: `predict` then gives x0 = level(sum of the conditions), whatever the noise.

        Conditions pass unchanged, the noisy target is not looked at, the blocks are the teacher's, and the output is
        the affine map into normalised space. Raises ``ValueError`` where the head and the level differ in shape.
        """
        config = self.config
        if config.conditioning != "own" or self.output_kind != "x0" or config.norm != "post":
            raise ValueError(
                f"a head with conditioning={config.conditioning}, prediction={config.prediction}, norm={config.norm} "
                "cannot start as the teacher's update: use own, x0 or regression, and post"
            )
        if len(level.layers) != len(self.layers):
            raise ValueError(
                f"the teacher's level has {len(level.layers)} layers: set diffusion.num_layers to that, "
                f"not {len(self.layers)}"
            )
        eye = torch.eye(config.latent_size)
        self.stem.proj.weight.copy_(torch.cat((torch.zeros_like(eye), eye, eye, eye), dim=1))
        _zero_bias(self.stem.proj)
        self.stem.null_x.zero_()
        for ours, theirs in zip(self.layers, level.layers, strict=True):
            _copy_block(ours, theirs)
        # Without time, the conditioning is one vector a type, on which an affine map a type can be laid.
        self.time.out_proj.weight.zero_()
        _zero_bias(self.time.out_proj)
        self.output.proj.weight.copy_(eye)
        _zero_bias(self.output.proj)
        mean, std = self.normalizer.mean, self.normalizer.std
        affine = torch.cat((-mean / std, 1 / std - 1), dim=1)  # (shift, scale) of both types, [2, 2 D]
        first, second = F.silu(self.type_embedding)
        direction = (second - first) / (second - first).square().sum()
        weight = torch.outer(affine[1] - affine[0], direction)
        self.output.modulation.proj.weight.copy_(weight)
        self.output.modulation.proj.bias.copy_(affine[0] - weight @ first)  # type: ignore[union-attr]


def _zero_bias(linear: CastedLinear) -> None:
    assert linear.bias is not None
    linear.bias.zero_()


def _copy_block(ours: nn.Module, theirs: nn.Module) -> None:
    """The weights of the teacher's block `theirs`, gates open, no other modulation."""
    assert isinstance(ours, ModulatedBlock) and isinstance(theirs, Block)
    source = theirs.state_dict()
    target = {name: tensor for name, tensor in ours.state_dict().items() if not name.startswith("modulation.")}
    for name, tensor in target.items():
        if name not in source or source[name].shape != tensor.shape:
            found = "is not there" if name not in source else f"has shape {tuple(source[name].shape)}"
            raise ValueError(
                f"the teacher's {name} {found}, the head's has {tuple(tensor.shape)}: "
                "heads, expansion and token mixing must be the teacher's"
            )
        tensor.copy_(source[name])
    ours.modulation.proj.weight.zero_()
    gates = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 1.0]).repeat_interleave(ours.mlp.down_proj.weight.shape[0])
    ours.modulation.proj.bias.copy_(gates)  # type: ignore[union-attr]
