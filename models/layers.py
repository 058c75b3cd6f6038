"""Building blocks shared by every architecture: casted linear maps, rotary attention, SwiGLU and the post-norm block.

Weights are kept in fp32 and cast to the dtype of the activations at use, so that the optimiser always
works on full-precision parameters. The block is post-norm with a weightless RMS norm (TRM paper, section 4):
``x = norm(x + mix(x)); x = norm(x + mlp(x))``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.kernels import PLAIN, Kernels
from models.kernels.attention import attend_plainly
from models.kernels.fp8 import fits, fp8_linear

CosSin = tuple[Tensor, Tensor]

# The standard deviation of a standard normal truncated to [-2, 2].
TRUNCATED_STD = 0.8796256610342398


def trunc_normal_init_(tensor: Tensor, std: float) -> Tensor:
    """Fill `tensor` with a normal truncated at two sigmas whose standard deviation *after* truncation is `std`."""
    if std == 0:
        return tensor.zero_()
    sigma = std / TRUNCATED_STD
    return nn.init.trunc_normal_(tensor, std=sigma, a=-2 * sigma, b=2 * sigma)


class CastedLinear(nn.Module):
    """Linear map [..., in_features] -> [..., out_features] in the dtype of its input.

    `fp8_passes`: products in fp8 in the passes without gradients that belong to training; see `models.kernels.fp8`.
    """

    fp8_passes = False

    def __init__(self, in_features: int, out_features: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(trunc_normal_init_(torch.empty(out_features, in_features), std=in_features**-0.5))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.fp8_passes and self.training and not torch.is_grad_enabled():
            return fp8_linear(x, self.weight)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class CastedEmbedding(nn.Module):
    """Embedding [...] int -> [..., embedding_dim] in `cast_to`."""

    def __init__(self, num_embeddings: int, embedding_dim: int, init_std: float, cast_to: torch.dtype):
        super().__init__()
        self.cast_to = cast_to
        self.embedding_weight = nn.Parameter(trunc_normal_init_(torch.empty(num_embeddings, embedding_dim), init_std))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.embedding_weight.to(self.cast_to))


class RotaryEmbedding(nn.Module):
    """Tables of cos and sin, each [length, head_dim] fp32 (RoFormer, Su et al. 2021, half-split layout)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, length: int, theta: float, positions: Tensor | None = None):
        """`positions` fp32 [length]: where the tokens stand, 0, 1, 2 and so on unless given."""
        super().__init__()
        positions = torch.arange(length, dtype=torch.float32) if positions is None else positions
        inverse_frequency = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        angle = torch.outer(positions, inverse_frequency)
        angle = torch.cat((angle, angle), dim=-1)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self) -> CosSin:
        return self.cos, self.sin


def rotate(x: Tensor, cos_sin: CosSin) -> Tensor:
    """Rotate x [batch, length, heads, head_dim] by position; computed in fp32, returned in the dtype of x."""
    cos, sin = (table.unsqueeze(-2) for table in cos_sin)
    x32 = x.to(cos.dtype)
    first, second = x32.chunk(2, dim=-1)
    return (x32 * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """Scale the last dimension of x to unit root mean square; fp32 inside, no learned weight."""
    x32 = x.to(torch.float32)
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


class Attention(nn.Module):
    """Bidirectional multi-head attention [batch, length, hidden] -> same; no mask, PAD cells attend like any other."""

    def __init__(self, hidden_size: int, num_heads: int, kernels: Kernels = PLAIN):
        super().__init__()
        self.attend = kernels.attention or attend_plainly
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        width = self.head_dim * num_heads
        self.qkv_proj = CastedLinear(hidden_size, 3 * width, bias=False)
        self.o_proj = CastedLinear(width, hidden_size, bias=False)

    def forward(self, x: Tensor, cos_sin: CosSin | None) -> Tensor:
        batch, length, _ = x.shape
        query, key, value = self.qkv_proj(x).view(batch, length, 3, self.num_heads, self.head_dim).unbind(2)
        if cos_sin is not None:
            query, key = rotate(query, cos_sin), rotate(key, cos_sin)
        return self.o_proj(self.attend(query, key, value).reshape(batch, length, -1))


class SwiGLU(nn.Module):
    """Gated MLP [..., size] -> [..., size] (Shazeer 2020), 2/3 * expansion * size wide, in multiples of 256."""

    def __init__(self, size: int, expansion: float, kernels: Kernels = PLAIN):
        super().__init__()
        self.fused = kernels.gated_mlp
        inner = 256 * math.ceil(round(expansion * size * 2 / 3) / 256)
        self.gate_up_proj = CastedLinear(size, 2 * inner, bias=False)
        self.down_proj = CastedLinear(inner, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused is not None:
            return self.fused(x, self.gate_up_proj.weight, self.down_proj.weight)
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class Block(nn.Module):
    """Post-norm block over x [batch, length, hidden]: mix the tokens, then the channels.

    With `mlp_length` the tokens are mixed by an MLP over that many positions instead of by attention
    (TRM paper, section 4.5); its residual is then normalised over the positions, as published. `kernels` take the place
    of parts of it.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        expansion: float,
        eps: float,
        mlp_length: int | None = None,
        kernels: Kernels = PLAIN,
    ):
        super().__init__()
        self.eps = eps
        self.kernels = kernels
        if mlp_length is None:
            self.self_attn = Attention(hidden_size, num_heads, kernels)
        else:
            self.mlp_t = SwiGLU(mlp_length, expansion)
        self.mixes_by_mlp = mlp_length is not None
        self.mlp = SwiGLU(hidden_size, expansion, kernels)

    def forward(self, x: Tensor, cos_sin: CosSin | None) -> Tensor:
        if not self.mixes_by_mlp:
            x = rms_norm(x + self.self_attn(x, cos_sin), self.eps)
        elif self.kernels.mix_tokens is not None:
            weights = self.mlp_t.gate_up_proj.weight, self.mlp_t.down_proj.weight
            x = self.kernels.mix_tokens(x, *weights, self.eps)
        else:
            x = x.transpose(1, 2)
            x = rms_norm(x + self.mlp_t(x), self.eps).transpose(1, 2)
        return rms_norm(x + self.mlp(x), self.eps)


class ReasoningModule(nn.Module):
    """A stack of blocks applied to a state with something injected: ``blocks(state + injection)``.

    This is the unit that recursion repeats, and the unit that training compiles.
    """

    def __init__(self, blocks: list[Block]):
        super().__init__()
        self.layers = nn.ModuleList(blocks)

    def use_fp8_passes(self) -> ReasoningModule:
        """The same with `CastedLinear.fp8_passes` wherever a matrix is of a size that fits and no kernel's."""
        fused = [part for part in self.modules() if isinstance(part, SwiGLU) and part.fused is not None]
        blocks = [part for part in self.modules() if isinstance(part, Block)]
        fused += [block.mlp_t for block in blocks if block.mixes_by_mlp and block.kernels.mix_tokens is not None]
        of_kernels = {module for part in fused for module in part.children()}
        for module in self.modules():
            if isinstance(module, CastedLinear) and module not in of_kernels:
                module.fp8_passes = fits(*module.weight.shape)
        return self

    def forward(self, state: Tensor, injection: Tensor, cos_sin: CosSin | None) -> Tensor:
        x = state + injection
        for layer in self.layers:
            x = layer(x, cos_sin)
        return x
