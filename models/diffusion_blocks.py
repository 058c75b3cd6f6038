"""What the diffusion heads share: configuration, conditioning on the noise level, the modulated block, the head itself.

A head is a network over TRM latents with a noise process and a latent normaliser handed in. Inside, the network may
predict the clean latents x0, the noise eps, v = alpha eps - sigma x0, or the clean latents without looking at the noise
(``regression``); outside, `DiffusionHead.predict` gives all three and `forward` the noise. Shapes: B rows, P latent
positions, D channels, N = P or blocks * P noisy tokens.

    head = Diffusion916({"latent_size": 512, "length": 97, "num_heads": 8}, process, normalizer)
    x0 = head.predict(noisy, t, z_prev, z_H, x, types=types).x0
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.kernels import Kernels, find
from models.layers import Attention, CastedLinear, CosSin, RotaryEmbedding, SwiGLU, rms_norm

Kind = Literal["eps", "x0", "v"]

Mixing = Literal["space", "steps", "all", "mlp"]

# Sinusoids that describe a timestep, as in DiT (Peebles & Xie 2022).
TIMESTEP_WIDTH = 256
# Graphs of one module's code that compilation may build.
MAX_GRAPHS = 64
# Queries that one thread block of the attention kernels works on.
ATTENTION_TILE = 128


class Prediction(Protocol):
    """One prediction in its three forms, fp32 tensors of one shape in normalised space."""

    @property
    def eps(self) -> Tensor: ...

    @property
    def x0(self) -> Tensor: ...

    @property
    def v(self) -> Tensor: ...


class Process(Protocol):
    """The noise process that a head needs: a number of steps and the exact conversions between predictions."""

    @property
    def num_steps(self) -> int: ...

    def convert(self, kind: Kind, output: Tensor, x_t: Tensor, t: Tensor) -> Prediction: ...


class Normalizer(Protocol):
    """Per type and channel: latents [..., P, D] to zero mean and unit deviation and back; `types` int64 [...]."""

    mean: Tensor
    std: Tensor

    def normalize(self, z: Tensor, types: Tensor) -> Tensor: ...

    def denormalize(self, u: Tensor, types: Tensor) -> Tensor: ...

    def project(self, u: Tensor, types: Tensor) -> Tensor: ...


class HeadConfig(BaseModel):
    """What every head is configured with; unknown keys are refused. The first five come from the teacher."""

    model_config = ConfigDict(extra="forbid")

    latent_size: int = Field(gt=0)  # D
    length: int = Field(gt=0)  # P
    target_blocks: int = Field(1, gt=0)  # latents that one row denoises: L_cycles + 1 for a whole H-cycle
    mlp_t: bool = False  # the teacher mixes tokens with an MLP over positions
    pos_encodings: Literal["rope", "none"] = "rope"

    num_layers: int = Field(2, gt=0)
    num_heads: int = Field(8, gt=0)
    expansion: float = Field(4, gt=0)
    rms_norm_eps: float = Field(1e-5, gt=0)
    rope_theta: float = Field(10000.0, gt=0)
    token_mixing: Literal["auto", "attention", "mlp"] = "auto"  # auto: as the teacher does
    checkpointing: bool = False  # recompute the blocks' activations in the backward pass

    prediction: Literal["x0", "eps", "v", "regression"] = "x0"
    sphere: bool = True  # put x0 back to the teacher's unit RMS per token
    forward_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    kernels: Literal["auto", "torch"] = "torch"  # torch: the plain path; see models.kernels

    @model_validator(mode="after")
    def _check_heads(self) -> HeadConfig:
        if self.latent_size % self.num_heads:
            raise ValueError(
                f"diffusion.num_heads={self.num_heads} does not divide the teacher's hidden size {self.latent_size}: "
                "choose heads that do"
            )
        if self.pos_encodings == "rope" and (self.latent_size // self.num_heads) % 2 and not self.mixes_by_mlp:
            raise ValueError(
                f"diffusion.num_heads={self.num_heads} gives heads of {self.latent_size // self.num_heads} channels, "
                "an odd number, which rope cannot rotate: choose another number of heads"
            )
        return self

    @property
    def mixes_by_mlp(self) -> bool:
        """Whether tokens are mixed by an MLP over the positions of a latent."""
        return self.token_mixing == "mlp" or (self.token_mixing == "auto" and self.mlp_t)

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.forward_dtype)

    def find_kernels(self) -> Kernels:
        """What takes the place of the plain path's parts on the current GPU; mixing by an MLP under modulation is
        another than our kernel's."""
        shape = {"length": self.length, "hidden_size": self.latent_size, "num_heads": self.num_heads}
        return replace(find(self.kernels, self.dtype, **shape, mlp_t=self.mixes_by_mlp), mix_tokens=None)


class ModulatedConfig(HeadConfig):
    """A head of `ModulatedBlock`."""

    norm: Literal["post", "pre"] = "post"  # post: TRM's block; pre: DiT's


def timestep_embedding(t: Tensor, width: int, max_period: float = 10000.0) -> Tensor:
    """Cosines and sines [B, width] fp32 of timesteps t [B] (Vaswani et al. 2017, as DDPM uses them); width even."""
    half = width // 2
    frequency = torch.exp(-math.log(max_period) / half * torch.arange(half, dtype=torch.float32, device=t.device))
    angle = t.to(torch.float32)[:, None] * frequency
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


class TimeConditioning(nn.Module):
    """An MLP on the timestep's sinusoids: int64 [B] -> fp32 [B, size]."""

    def __init__(self, size: int):
        super().__init__()
        self.in_proj = CastedLinear(TIMESTEP_WIDTH, size, bias=True)
        self.out_proj = CastedLinear(size, size, bias=True)

    def forward(self, t: Tensor) -> Tensor:
        return self.out_proj(F.silu(self.in_proj(timestep_embedding(t, TIMESTEP_WIDTH))))


class Modulation(nn.Module):
    """`parts` vectors per row from the conditioning c [B, D] fp32, zero at the start (adaLN-zero, DiT section 3.2).

    Returns tensors [B, 1, 1, D] fp32. It acts on rows, not tokens, so that fp32 costs nothing; the tokens meet it in
    one fused elementwise kernel.
    """

    def __init__(self, size: int, parts: int):
        super().__init__()
        self.parts = parts
        self.proj = CastedLinear(size, parts * size, bias=True)
        with torch.no_grad():
            self.proj.weight.zero_()

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:
        return self.proj(F.silu(c))[:, None, None, :].chunk(self.parts, dim=-1)


class StepAttention(Attention):
    """Attention over the blocks at each position: x [B, blocks, positions, D] -> same, without position encodings.

    A sequence of ten tokens leaves the attention kernels' tiles nearly empty, and there are B * positions of them. So
    several positions share a sequence, in which a token sees its own position only.
    """

    def forward(self, x: Tensor, cos_sin: CosSin | None = None) -> Tensor:
        batch, blocks, positions, size = x.shape
        together = positions_together(batch * positions, blocks)
        length = together * blocks
        x = x.transpose(1, 2).reshape(-1, length, size)
        query, key, value = (
            self.qkv_proj(x).view(-1, length, 3, self.num_heads, self.head_dim).transpose(1, 3).unbind(2)
        )
        position = torch.arange(length, device=x.device) // blocks
        mask = position[:, None] == position if together > 1 else None
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed = self.o_proj(mixed.transpose(1, 2).reshape(-1, length, size))
        return mixed.view(batch, positions, blocks, size).transpose(1, 2)


def positions_together(positions: int, blocks: int) -> int:
    """How many of `positions` groups of `blocks` tokens to put in one sequence: a divisor that fits a tile."""
    return max(n for n in range(1, max(1, ATTENTION_TILE // blocks) + 1) if positions % n == 0)


class ModulatedBlock(nn.Module):
    """TRM's block under adaLN-zero: mix the tokens, then the channels, of x [B, blocks, positions, D].

    With (shift, scale, gate) from the conditioning,
    ``x = norm(x + gate1 mix(x (1 + scale1) + shift1)); x = norm(x + gate2 mlp(x (1 + scale2) + shift2))``, which is
    `models.layers.Block` where the gates are 1 and the rest 0. With ``norm="pre"`` it is DiT's block instead,
    ``x = x + gate mix(norm(x) (1 + scale) + shift)``.

    `mixing`: ``space``, attention over the positions of each block; ``steps``, over the blocks at each position;
    ``all``, over all positions of all blocks; ``mlp``, an MLP over the positions of each block, whose residual
    post-norm normalises over positions.
    """

    def __init__(self, config: ModulatedConfig, mixing: Mixing):
        super().__init__()
        self.eps = config.rms_norm_eps
        self.mixing = mixing
        self.prenorm = config.norm == "pre"
        size = config.latent_size
        kernels = config.find_kernels()
        if mixing == "mlp":
            self.mlp_t = SwiGLU(config.length, config.expansion)
        else:
            heads = config.num_heads
            self.self_attn = StepAttention(size, heads) if mixing == "steps" else Attention(size, heads, kernels)
        self.mlp = SwiGLU(size, config.expansion, kernels)
        self.modulation = Modulation(size, 6)

    def mix(self, x: Tensor, cos_sin: CosSin | None) -> Tensor:
        if self.mixing == "mlp":
            return self.mlp_t(x.transpose(-1, -2)).transpose(-1, -2)
        if self.mixing == "steps":
            return self.self_attn(x, None)
        tokens = x.flatten(0, 1) if self.mixing == "space" else x.flatten(1, 2)
        return self.self_attn(tokens, cos_sin).view(x.shape)

    def norm(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.eps)

    def forward(self, x: Tensor, c: Tensor, cos_sin: CosSin | None, drop: int = 0) -> Tensor:
        """c: [B, D] fp32. `drop`: leading blocks that nothing reads any more and that leave before the MLP."""
        dtype = x.dtype
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)
        if self.prenorm:
            mixed = self.mix((self.norm(x) * (1 + scale1) + shift1).to(dtype), cos_sin)
            x = (x[:, drop:] + gate1 * mixed[:, drop:]).to(dtype)
            return (x + gate2 * self.mlp((self.norm(x) * (1 + scale2) + shift2).to(dtype))).to(dtype)
        mixed = self.mix((x * (1 + scale1) + shift1).to(dtype), cos_sin)
        x = x[:, drop:] + gate1 * mixed[:, drop:]
        x = (self.norm(x.transpose(-1, -2)).transpose(-1, -2) if self.mixing == "mlp" else self.norm(x)).to(dtype)
        return self.norm(x + gate2 * self.mlp((x * (1 + scale2) + shift2).to(dtype))).to(dtype)


class Output(nn.Module):
    """The last modulation and a linear map, zero at the start: h [B, blocks, positions, D] -> fp32 [B, N, D].

    Linear, because an output on the sphere could not have the length of the noise (or of normalised latents).
    """

    def __init__(self, config: ModulatedConfig):
        super().__init__()
        self.eps = config.rms_norm_eps
        self.prenorm = config.norm == "pre"
        self.modulation = Modulation(config.latent_size, 2)
        self.proj = CastedLinear(config.latent_size, config.latent_size, bias=True)
        with torch.no_grad():
            self.proj.weight.zero_()

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.modulation(c)
        h32 = rms_norm(h, self.eps) if self.prenorm else h
        return self.proj((h32 * (1 + scale) + shift).to(h.dtype)).flatten(1, 2).to(torch.float32)


class DiffusionHead(nn.Module):
    """A network over latents with its noise process and normaliser. A head defines `denoise` and `default_types`.

    Weights and everything outside the network are fp32, activations inside are in `forward_dtype`. Raises
    ``pydantic.ValidationError`` (a ``ValueError``) for a configuration that cannot be built.
    """

    config_class: ClassVar[type[HeadConfig]] = HeadConfig
    # Whether targets are normalised per type and channel before noise is added; the literal S0 heads take them raw.
    normalizes: ClassVar[bool] = True

    def __init__(self, config: dict[str, Any], process: Process, normalizer: Normalizer):
        super().__init__()
        self.config = self.config_class(**config)
        self.process = process
        self.normalizer = normalizer
        self.layers = nn.ModuleList()

    def denoise(self, noisy: Tensor, t: Tensor, conditions: tuple[Tensor, ...], types: Tensor) -> Tensor:
        """The network: `conditions` in the forward dtype, all else as `network` is given it."""
        raise TypeError(f"{type(self).__name__} does not define its network")

    def default_types(self, batch: int, conditions: tuple[Tensor, ...]) -> Tensor:
        """Types (0: z_L, 1: z_H) of the target blocks, int64 [batch] or [batch, blocks], where none are given."""
        raise TypeError(f"{type(self).__name__} does not define the types of its targets")

    def units(self) -> list[nn.Module]:
        """The modules in which the work is done, each compiled on its own."""
        return list(self.layers)

    def network(self, noisy: Tensor, t: Tensor, conditions: tuple[Tensor, ...], types: Tensor | None = None) -> Tensor:
        """The network's raw output fp32 [B, N, D], of the kind `output_kind`.

        noisy: fp32 [B, N, D], normalised. t: int64 [B]. conditions: raw latents [B, P, D] each. types: int64 [B] or
        [B, blocks]. A regression head is shown neither the noisy latents nor the timestep.
        """
        if types is None:
            types = self.default_types(noisy.shape[0], conditions)
        if self.config.prediction == "regression":
            noisy, t = torch.zeros_like(noisy), torch.full_like(t, self.process.num_steps - 1)
        return self.denoise(noisy, t, tuple(z.to(self.config.dtype) for z in conditions), types)

    @property
    def output_kind(self) -> Kind:
        """What the raw output is: a regression head's is x0."""
        return "x0" if self.config.prediction == "regression" else self.config.prediction

    def predict(self, noisy: Tensor, t: Tensor, *conditions: Tensor, types: Tensor | None = None) -> Prediction:
        """eps, x0 and v, fp32 [B, N, D] in normalised space; consistent with each other, and with x0 on the sphere."""
        if types is None:
            types = self.default_types(noisy.shape[0], conditions)
        noisy = noisy.to(torch.float32)
        prediction = self.process.convert(self.output_kind, self.network(noisy, t, conditions, types), noisy, t)
        if not self.config.sphere:
            return prediction
        blocks = prediction.x0.unflatten(1, (-1, self.config.length)) if types.dim() == 2 else prediction.x0
        x0 = self.normalizer.project(blocks, types).view(noisy.shape)
        return self.process.convert("x0", x0, noisy, t)

    def forward(self, noisy: Tensor, t: Tensor, *conditions: Tensor, types: Tensor | None = None) -> Tensor:
        """The predicted noise, fp32 [B, N, D]."""
        return self.predict(noisy, t, *conditions, types=types).eps

    def through(self, layer: nn.Module, *arguments: Any) -> Tensor:
        """One layer, its activations kept for the backward pass or, with `checkpointing`, computed again there."""
        if self.config.checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, *arguments, use_reentrant=False)
        return layer(*arguments)

    def through_layers(self, h: Tensor, c: Tensor, cos_sin: CosSin | None, drop: int = 0) -> Tensor:
        """h [B, blocks, positions, D] through the modulated blocks; the last one drops the first `drop` blocks."""
        for layer in self.layers[:-1]:
            h = self.through(layer, h, c, cos_sin)
        return self.through(self.layers[-1], h, c, cos_sin, drop)


def build_rotary(config: HeadConfig, blocks: int = 1) -> RotaryEmbedding | None:
    """The teacher's rotary table over 0..P-1, repeated for each of `blocks` blocks in a sequence; None without rope."""
    if config.pos_encodings == "none":
        return None
    rotary = RotaryEmbedding(config.latent_size // config.num_heads, config.length, config.rope_theta)
    rotary.cos, rotary.sin = rotary.cos.repeat(blocks, 1), rotary.sin.repeat(blocks, 1)
    return rotary


def compile_blocks(head: DiffusionHead, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the units of the work in place: one graph a kind of block, however many layers there are."""
    import torch._dynamo  # here, because it takes seconds

    # All blocks share one cache. Three kinds in training and, at some batch sizes, in evaluation are more than the 8
    # graphs it holds by default, after which `fullgraph` is an error.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_GRAPHS)
    for module in head.units():
        module.compile(backend=backend, fullgraph=True, dynamic=False)
