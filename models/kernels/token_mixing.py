"""The MLP over positions with its residual and norm in one kernel: ``norm(x + mlp_t(x))`` for x [B, P, D].

The plain path, `models.layers.Block` with `mlp_length`, defines it. That one writes a gated tensor of 2 I numbers for
every channel of every row, by products with 97 as a dimension, where matrix units like multiples of eight. Here a tile
of x, [P, some channels], stays on the chip through both products, the residual and the norm over its positions, all of
which it holds. The backward pass computes the gates again instead of keeping them. Needs Triton.

    y = mix_tokens(x, mlp_t.gate_up_proj.weight, mlp_t.down_proj.weight, eps)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, library
from torch.utils.flop_counter import register_flop_formula


class Tiling(NamedTuple):
    """Channels of a tile, inner features at a time, and how a program is compiled."""

    channels: int
    inner: int
    num_warps: int
    num_stages: int


# The fastest of ten, seven and eleven at 768 x 97 x 512.
FORWARD, BACKWARD_X, BACKWARD_WEIGHTS = Tiling(128, 32, 8, 3), Tiling(128, 64, 8, 2), Tiling(32, 64, 4, 3)
# Programs that share the gradients of the weights of the same inner features: with 8 of those, two to a multiprocessor.
SPLITS = 33
# What the width of the MLP must be a multiple of.
FEATURES = 64


@triton.jit
def _tile(row, part, P: tl.constexpr, P_PAD: tl.constexpr, D: tl.constexpr, CHANNELS: tl.constexpr):
    """Channels, what of a tile lies within the tensor, and where: [CHANNELS], [P_PAD, CHANNELS] each."""
    position, channel = tl.arange(0, P_PAD), part * CHANNELS + tl.arange(0, CHANNELS)
    inside = (position < P)[:, None] & (channel < D)[None, :]
    return channel, inside, row * P * D + position[:, None] * D + channel[None, :]


@triton.jit
def _weights(
    gate_ptr, up_ptr, down_ptr, first, P_PAD: tl.constexpr, FEATURES: tl.constexpr, INNER: tl.constexpr
):  # fmt: skip
    """Of `INNER` features from `first` on: weights of gate and up, [INNER, P_PAD] each, and of down [P_PAD, INNER]."""
    position, feature = tl.arange(0, P_PAD), first + tl.arange(0, INNER)
    place = feature[:, None] * P_PAD + position[None, :]
    down = tl.load(down_ptr + position[:, None] * FEATURES + feature[None, :])
    return tl.load(gate_ptr + place), tl.load(up_ptr + place), down


@triton.jit
def _gates_backward(gate, up, d_mixed):
    """silu(gate) * up, and the gradients of gate and up, fp32."""
    share = tl.sigmoid(gate)
    activated = gate * share
    return activated * up, d_mixed * up * share * (1 + gate * (1 - share)), d_mixed * activated


@triton.jit
def _forward(
    x_ptr, gate_ptr, up_ptr, down_ptr, y_ptr, scale_ptr, eps,
    P: tl.constexpr, P_PAD: tl.constexpr, D: tl.constexpr, FEATURES: tl.constexpr,
    CHANNELS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel, inside, place = _tile(row, part, P, P_PAD, D, CHANNELS)
    x = tl.load(x_ptr + place, mask=inside, other=0.0)
    # Channels come first, so that what the gates give stays in registers for the second product.
    turned = tl.trans(x)
    total = turned.to(tl.float32)
    for first in range(0, FEATURES, INNER):
        weight_g, weight_u, down = _weights(gate_ptr, up_ptr, down_ptr, first, P_PAD, FEATURES, INNER)
        gate = tl.dot(turned, tl.trans(weight_g), input_precision="ieee")
        up = tl.dot(turned, tl.trans(weight_u), input_precision="ieee")
        mixed = gate * tl.sigmoid(gate) * up
        total = tl.dot(mixed.to(x.dtype), tl.trans(down), total, input_precision="ieee")
    # What is padded has zero weights, and so adds nothing.
    scale = 1 / tl.sqrt(tl.sum(total * total, axis=1) / P + eps)
    tl.store(y_ptr + place, tl.trans((total * scale[:, None]).to(x.dtype)), mask=inside)
    tl.store(scale_ptr + row * D + channel, scale, mask=channel < D)


@triton.jit
def _backward_x(
    x_ptr, gate_ptr, up_ptr, down_ptr, y_ptr, scale_ptr, dy_ptr, total_ptr, dx_ptr,
    P: tl.constexpr, P_PAD: tl.constexpr, D: tl.constexpr, FEATURES: tl.constexpr,
    CHANNELS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Gradients of the sum before the norm, in the dtype of x, and of x."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel, inside, place = _tile(row, part, P, P_PAD, D, CHANNELS)
    y = tl.load(y_ptr + place, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + place, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + row * D + channel, mask=channel < D, other=0.0)
    d_sum = scale[None, :] * (dy - y * (tl.sum(dy * y, axis=0) / P)[None, :])
    x = tl.load(x_ptr + place, mask=inside, other=0.0)
    d_total = d_sum.to(x.dtype)
    tl.store(total_ptr + place, d_total, mask=inside)
    turned, d_turned = tl.trans(x), tl.trans(d_total)
    dx = tl.trans(d_sum)
    for first in range(0, FEATURES, INNER):
        weight_g, weight_u, down = _weights(gate_ptr, up_ptr, down_ptr, first, P_PAD, FEATURES, INNER)
        gate = tl.dot(turned, tl.trans(weight_g), input_precision="ieee")
        up = tl.dot(turned, tl.trans(weight_u), input_precision="ieee")
        d_mixed = tl.dot(d_turned, down, input_precision="ieee")
        _, d_gate, d_up = _gates_backward(gate, up, d_mixed)
        dx = tl.dot(d_gate.to(x.dtype), weight_g, dx, input_precision="ieee")
        dx = tl.dot(d_up.to(x.dtype), weight_u, dx, input_precision="ieee")
    tl.store(dx_ptr + place, tl.trans(dx).to(x.dtype), mask=inside)


@triton.jit
def _backward_weights(
    x_ptr, gate_ptr, up_ptr, down_ptr, total_ptr, d_gate_ptr, d_up_ptr, d_down_ptr, tiles,
    P: tl.constexpr, P_PAD: tl.constexpr, D: tl.constexpr, FEATURES: tl.constexpr,
    CHANNELS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Gradients of `INNER` features' weights, summed over every `SPLITS`-th tile: fp32 [SPLITS, I, P_PAD] each."""
    first, split = tl.program_id(0) * INNER, tl.program_id(1)
    position, feature = tl.arange(0, P_PAD), first + tl.arange(0, INNER)
    weight_g, weight_u, down = _weights(gate_ptr, up_ptr, down_ptr, first, P_PAD, FEATURES, INNER)
    sum_g = tl.zeros((INNER, P_PAD), tl.float32)
    sum_u = tl.zeros((INNER, P_PAD), tl.float32)
    sum_d = tl.zeros((INNER, P_PAD), tl.float32)
    parts: tl.constexpr = (D + CHANNELS - 1) // CHANNELS
    for tile in range(split, tiles, tl.num_programs(1)):
        row = tl.full((), tile // parts, tl.int64)
        _, inside, place = _tile(row, tile % parts, P, P_PAD, D, CHANNELS)
        x = tl.load(x_ptr + place, mask=inside, other=0.0)
        d_total = tl.load(total_ptr + place, mask=inside, other=0.0)
        gate = tl.dot(weight_g, x, input_precision="ieee")
        up = tl.dot(weight_u, x, input_precision="ieee")
        d_mixed = tl.dot(tl.trans(down), d_total, input_precision="ieee")
        mixed, d_gate, d_up = _gates_backward(gate, up, d_mixed)
        sum_g = tl.dot(d_gate.to(x.dtype), tl.trans(x), sum_g, input_precision="ieee")
        sum_u = tl.dot(d_up.to(x.dtype), tl.trans(x), sum_u, input_precision="ieee")
        sum_d = tl.dot(mixed.to(x.dtype), tl.trans(d_total), sum_d, input_precision="ieee")
    place = split * FEATURES * P_PAD + feature[:, None] * P_PAD + position[None, :]
    tl.store(d_gate_ptr + place, sum_g)
    tl.store(d_up_ptr + place, sum_u)
    tl.store(d_down_ptr + place, sum_d)


def _sizes(x: Tensor, down: Tensor, tiling: Tiling) -> dict[str, int]:
    """What a kernel is compiled for. A tile has all positions, in a power of two that matrix units take."""
    sizes = {"P": x.shape[1], "P_PAD": _positions(x), "D": x.shape[2], "FEATURES": down.shape[1]}
    return sizes | {
        "CHANNELS": tiling.channels,
        "INNER": tiling.inner,
        "num_warps": tiling.num_warps,
        "num_stages": tiling.num_stages,
    }


def _positions(x: Tensor) -> int:
    return max(16, triton.next_power_of_2(x.shape[1]))


def _padded(gate_up: Tensor, down: Tensor, dtype: torch.dtype, P_PAD: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights in the dtype of x, zero beyond P: gate and up [I, P_PAD], down [P_PAD, I]."""
    wide = torch.nn.functional.pad(gate_up.to(dtype), (0, P_PAD - gate_up.shape[1]))
    gate, up = wide.chunk(2)
    return gate.contiguous(), up.contiguous(), torch.nn.functional.pad(down.to(dtype), (0, 0, 0, P_PAD - len(down)))


@library.custom_op("trm_lab::mix_tokens", mutates_args=())
def _mix(x: Tensor, gate_up: Tensor, down: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    y, scale = torch.empty_like(x), x.new_empty((x.shape[0], x.shape[2]), dtype=torch.float32)
    weights = _padded(gate_up, down, x.dtype, _positions(x))
    grid = (x.shape[0], math.ceil(x.shape[2] / FORWARD.channels))
    _forward[grid](x, *weights, y, scale, eps, **_sizes(x, down, FORWARD))
    return y, scale


@register_flop_formula(torch.ops.trm_lab.mix_tokens)
def _flops(x: torch.Size, gate_up: torch.Size, down: torch.Size, eps: float, **_: object) -> int:
    """Operations, as the plain path's two products have them."""
    rows, P, D = x
    return 2 * rows * D * P * (gate_up[0] + down[1])


@_mix.register_fake
def _(x: Tensor, gate_up: Tensor, down: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(
        (x.shape[0], x.shape[2]), dtype=torch.float32
    )


@library.custom_op("trm_lab::mix_tokens_backward", mutates_args=())
def _mix_backward(
    x: Tensor, gate_up: Tensor, down: Tensor, y: Tensor, scale: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    x, dy, features = x.contiguous(), dy.contiguous(), down.shape[1]
    weights = _padded(gate_up, down, x.dtype, _positions(x))
    d_total, dx = torch.empty_like(x), torch.empty_like(x)
    grid = (x.shape[0], math.ceil(x.shape[2] / BACKWARD_X.channels))
    _backward_x[grid](x, *weights, y, scale, dy, d_total, dx, **_sizes(x, down, BACKWARD_X))
    tiles = x.shape[0] * math.ceil(x.shape[2] / BACKWARD_WEIGHTS.channels)
    splits = min(SPLITS, tiles)
    sums = x.new_empty((3, splits, features, _positions(x)), dtype=torch.float32)
    sizes = _sizes(x, down, BACKWARD_WEIGHTS)
    _backward_weights[features // BACKWARD_WEIGHTS.inner, splits](x, *weights, d_total, *sums, tiles, **sizes)
    d_gate, d_up, d_down = sums.sum(1)[..., : x.shape[1]]
    return dx, torch.cat((d_gate, d_up)).to(gate_up.dtype), d_down.T.to(down.dtype).contiguous()


@_mix_backward.register_fake
def _(x: Tensor, gate_up: Tensor, down: Tensor, y: Tensor, scale: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(gate_up), torch.empty_like(down)


def _keep(ctx, inputs, output) -> None:
    x, gate_up, down, _ = inputs
    ctx.save_for_backward(x, gate_up, down, *output)


def _differentiate(ctx, dy: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, Tensor, None]:
    return *_mix_backward(*ctx.saved_tensors, dy), None


_mix.register_autograd(_differentiate, setup_context=_keep)


def mix_tokens(x: Tensor, gate_up: Tensor, down: Tensor, eps: float) -> Tensor:
    """``norm(x + mlp_t(x))`` over the positions of x [B, P, D], in its dtype; weights [2 I, P] and [P, I] of any.

    Products accumulate in fp32, and nothing is rounded between the second product and the norm's result. ValueError
    where I is no multiple of 64.
    """
    if down.shape[1] % FEATURES:
        raise ValueError(f"the MLP has {down.shape[1]} inner features: the kernel takes multiples of {FEATURES}")
    return _mix(x, gate_up, down, eps)[0]
