"""The two heads of the specification (S0), word for word, kept as ablations.

Seed916 adds noise, conditions and time into one sum, so that noise cannot be told from condition, and returns hidden
states of unit RMS, which no noise prediction should have. Seed9160 tells positions apart by content alone. Both predict
eps of raw latents, whose error at high noise is that of x0 divided by alpha_T. What S0 leaves open is chosen plainly:
the noise level enters Seed9160 with the step embedding, and its encoder has no dropout, which would draw random numbers
that a resumed run cannot repeat.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from models.diffusion_916 import LayerHead
from models.diffusion_9160 import CONDITION_BLOCKS, TrajectoryConfig, TrajectoryHead
from models.diffusion_blocks import HeadConfig, Normalizer, Process, TimeConditioning, build_rotary
from models.layers import Block, CastedLinear, rms_norm, trunc_normal_init_


class Seed916Config(HeadConfig):
    prediction: Literal["x0", "eps", "v", "regression"] = "eps"
    sphere: bool = False


class Seed916(LayerHead):
    """``hidden = rms_norm(noisy + sum(conditions) + time)``, TRM's blocks, ``return hidden``; S0 section 3."""

    config_class = Seed916Config
    normalizes = False

    def __init__(self, config: dict[str, Any], process: Process, normalizer: Normalizer):
        super().__init__(config, process, normalizer)
        settings = self.config
        mlp_length = settings.length if settings.mixes_by_mlp else None
        self.rotary = None if settings.mixes_by_mlp else build_rotary(settings)
        self.time = TimeConditioning(settings.latent_size)
        self.layers.extend(
            Block(settings.latent_size, settings.num_heads, settings.expansion, settings.rms_norm_eps, mlp_length)
            for _ in range(settings.num_layers)
        )

    def denoise(self, noisy: Tensor, t: Tensor, conditions: tuple[Tensor, ...], types: Tensor) -> Tensor:
        condition = torch.stack(conditions).sum(0)
        hidden = rms_norm(noisy + condition + self.time(t)[:, None, :], self.config.rms_norm_eps).to(self.config.dtype)
        cos_sin = None if self.rotary is None else self.rotary()
        for layer in self.layers:
            hidden = self.through(layer, hidden, cos_sin)
        return hidden.to(torch.float32)


class Seed9160Config(TrajectoryConfig):
    prediction: Literal["x0", "eps", "v", "regression"] = "eps"
    sphere: bool = False


class EncoderLayer(nn.Module):
    """The library's post-norm layer with GELU, [B, tokens, D] -> same; fp32 weights, cast to the dtype of the input."""

    def __init__(self, config: TrajectoryConfig):
        super().__init__()
        size = config.latent_size
        width = round(config.expansion * size)
        self.layer = nn.TransformerEncoderLayer(
            size, config.num_heads, width, dropout=0.0, activation="gelu", batch_first=True, norm_first=False
        )

    def forward(self, x: Tensor) -> Tensor:
        weights = {name: parameter.to(x.dtype) for name, parameter in self.layer.named_parameters()}
        return functional_call(self.layer, weights, (x,))


class Seed9160(TrajectoryHead):
    """A Transformer encoder over ``[x | y_init | z_init | noisy + step]`` and a linear projection; S0 section 4."""

    config_class = Seed9160Config
    normalizes = False

    def __init__(self, config: dict[str, Any], process: Process, normalizer: Normalizer):
        super().__init__(config, process, normalizer)
        settings = self.config
        size = settings.latent_size
        self.time = TimeConditioning(size)
        self.condition_proj = CastedLinear(size, size, bias=True)
        self.step_embedding = nn.Parameter(trunc_normal_init_(torch.empty(settings.target_blocks, size), std=0.02))
        self.layers.extend(EncoderLayer(settings) for _ in range(settings.num_layers))
        self.out_proj = CastedLinear(size, size, bias=True)

    def denoise(self, noisy: Tensor, t: Tensor, conditions: tuple[Tensor, ...], types: Tensor) -> Tensor:
        dtype = self.config.dtype
        blocks = noisy.unflatten(1, (self.config.target_blocks, -1))
        with_position = blocks + self.step_embedding[:, None, :] + self.time(t)[:, None, None, :]
        projected = self.condition_proj(torch.stack(conditions, dim=1))
        hidden = torch.cat((projected, with_position.to(dtype)), dim=1).flatten(1, 2)
        for layer in self.layers:
            hidden = self.through(layer, hidden)
        return self.out_proj(hidden[:, CONDITION_BLOCKS * self.config.length :]).to(torch.float32)
