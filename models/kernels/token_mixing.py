"""The MLP over positions with its residual and norm in one kernel: ``norm(x + mlp_t(x))`` for x [B, P, D].

The plain path, `models.layers.Block` with `mlp_length`, defines it. That one writes a gated tensor of 2 I numbers for
every channel of every row, by products with 97 as a dimension, where matrix units like multiples of eight. Here a tile
of x, [P, some channels], stays on the chip through both products, the residual and the norm over its positions, all of
which it holds. The backward pass computes the gates again, twice, and keeps only their product, which the gradient of
down needs: sums for all three weights at once do not fit a program's registers. Needs Triton.

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


class Tilings(NamedTuple):
    """Of the four kernels."""

    forward: Tiling
    backward_x: Tiling
    gate_and_up: Tiling
    down: Tiling


# The fastest of what was measured at 768 x 97 x 512 (docs/performance.md); and, in fp32 on a GPU, what compiles soon.
HALF = Tilings(Tiling(128, 32, 4, 3), Tiling(128, 32, 8, 3), Tiling(32, 64, 4, 3), Tiling(64, 128, 4, 4))
SINGLE = Tilings(Tiling(32, 32, 8, 1), Tiling(32, 32, 8, 1), Tiling(32, 64, 8, 1), Tiling(32, 64, 8, 1))
# Programs that share the gradients of the weights of the same inner features: one or two to a multiprocessor.
SPLITS = 33
# What the width of the MLP must be a multiple of.
FEATURES = 128
ROWS = 16  # of weights at a time, where they are prepared and where their gradients are summed


@triton.jit
def _tile(row, channel, P: tl.constexpr, P_PAD: tl.constexpr, D: tl.constexpr):
    """Where a row's positions of some channels lie and which exist: [P_PAD, channels] each."""
    position = tl.arange(0, P_PAD)
    inside = (position < P)[:, None] & (channel < D)[None, :]
    return row * P * D + position[:, None] * D + channel[None, :], inside


@triton.jit
def _tile_of(tile, CHANNELS: tl.constexpr, D: tl.constexpr):
    """Row and channels of the tile of that number."""
    parts: tl.constexpr = (D + CHANNELS - 1) // CHANNELS
    return tl.full((), tile // parts, tl.int64), tile % parts * CHANNELS + tl.arange(0, CHANNELS)


@triton.jit
def _weights(ptr, feature, P_PAD: tl.constexpr):
    """Rows of the prepared weights: [features, P_PAD]."""
    return tl.load(ptr + feature[:, None] * P_PAD + tl.arange(0, P_PAD)[None, :])


@triton.jit
def _of_gate_and_up(first, INNER: tl.constexpr, FEATURES: tl.constexpr):
    """Rows of the prepared weights of `INNER` features, gate's and then up's, for one product instead of two."""
    both = tl.arange(0, 2 * INNER)
    return both // INNER * FEATURES + first + both % INNER


@triton.jit
def _apart(joined, CHANNELS: tl.constexpr, INNER: tl.constexpr):
    """Gate and up [CHANNELS, INNER] out of that one product."""
    return tl.split(tl.trans(tl.reshape(joined, (CHANNELS, 2, INNER)), 0, 2, 1))


@triton.jit
def _tanh_plus_one(half, APPROXIMATE: tl.constexpr):
    """1 + tanh(half), which is 2 sigmoid(2 half); approximately: by one instruction, with a relative error of 2^-11."""
    if APPROXIMATE:
        tanh = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [half], dtype=tl.float32, is_pure=True, pack=1
        )
        return tanh + 1
    return 2 * tl.sigmoid(2 * half)


@triton.jit
def _gates_backward(half, up, d_mixed, APPROXIMATE: tl.constexpr):
    """silu(gate) * up, and the gradients of half the gate and of up, fp32."""
    above = _tanh_plus_one(half, APPROXIMATE)
    activated = half * above
    # The derivative of half (1 + tanh): 1 + tanh + half (1 + tanh) (1 - tanh).
    return activated * up, d_mixed * up * (above + activated * (2 - above)), d_mixed * activated


@triton.jit
def _prepare(
    gate_up_ptr, down_ptr, weights_ptr,
    P: tl.constexpr, P_PAD: tl.constexpr, FEATURES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Weights [3 I, P_PAD], zero beyond P: gate's, halved, because silu(gate) = half (1 + tanh(half)); up's; down's,
    transposed."""
    row, position = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, P_PAD)
    inside = (position < P)[None, :]
    if tl.program_id(0) * ROWS < 2 * FEATURES:
        weights = tl.load(gate_up_ptr + row[:, None] * P + position[None, :], mask=inside, other=0.0)
        weights = tl.where(row[:, None] < FEATURES, weights * 0.5, weights)
    else:
        place = position[None, :] * FEATURES + row[:, None] - 2 * FEATURES
        weights = tl.load(down_ptr + place, mask=inside, other=0.0)
    tl.store(weights_ptr + row[:, None] * P_PAD + position[None, :], weights.to(weights_ptr.dtype.element_ty))


@triton.jit
def _forward(
    x_ptr, weights_ptr, y_ptr, scale_ptr, eps,
    P: tl.constexpr, P_PAD: tl.constexpr, D: tl.constexpr, FEATURES: tl.constexpr,
    CHANNELS: tl.constexpr, INNER: tl.constexpr, APPROXIMATE: tl.constexpr,
):  # fmt: skip
    row, channel = tl.program_id(0).to(tl.int64), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    place, inside = _tile(row, channel, P, P_PAD, D)
    # Channels come first, so that what the gates give stays in registers for the second product.
    x = tl.trans(tl.load(x_ptr + place, mask=inside, other=0.0))
    total = x.to(tl.float32)
    for first in range(0, FEATURES, INNER):
        gate_and_up = _weights(weights_ptr, _of_gate_and_up(first, INNER, FEATURES), P_PAD)
        half, up = _apart(tl.dot(x, tl.trans(gate_and_up), input_precision="ieee"), CHANNELS, INNER)
        mixed = half * _tanh_plus_one(half, APPROXIMATE) * up
        down = _weights(weights_ptr, 2 * FEATURES + first + tl.arange(0, INNER), P_PAD)
        total = tl.dot(mixed.to(x.dtype), down, total, input_precision="ieee")
    # What is padded has zero weights, and so adds nothing.
    scale = 1 / tl.sqrt(tl.sum(total * total, axis=1) / P + eps)
    tl.store(y_ptr + place, tl.trans((total * scale[:, None]).to(x.dtype)), mask=inside)
    tl.store(scale_ptr + row * D + channel, scale, mask=channel < D)


@triton.jit
def _backward_x(
    x_ptr, weights_ptr, y_ptr, scale_ptr, dy_ptr, total_ptr, dx_ptr, mixed_ptr,
    P: tl.constexpr, P_PAD: tl.constexpr, D: tl.constexpr, FEATURES: tl.constexpr,
    CHANNELS: tl.constexpr, INNER: tl.constexpr, APPROXIMATE: tl.constexpr,
):  # fmt: skip
    """Gradients of the sum before the norm and of x, [B, P, D], and silu(gate) * up again, [B, D, I]."""
    row, channel = tl.program_id(0).to(tl.int64), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    place, inside = _tile(row, channel, P, P_PAD, D)
    y = tl.load(y_ptr + place, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + place, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + row * D + channel, mask=channel < D, other=0.0)
    d_sum = scale[None, :] * (dy - y * (tl.sum(dy * y, axis=0) / P)[None, :])
    x = tl.load(x_ptr + place, mask=inside, other=0.0)
    d_total = d_sum.to(x.dtype)
    tl.store(total_ptr + place, d_total, mask=inside)
    x, d_total, dx = tl.trans(x), tl.trans(d_total), tl.trans(d_sum)
    place_mixed = (row * D + channel)[:, None] * FEATURES + tl.arange(0, INNER)[None, :]
    for first in range(0, FEATURES, INNER):
        gate_and_up = _weights(weights_ptr, _of_gate_and_up(first, INNER, FEATURES), P_PAD)
        half, up = _apart(tl.dot(x, tl.trans(gate_and_up), input_precision="ieee"), CHANNELS, INNER)
        down = _weights(weights_ptr, 2 * FEATURES + first + tl.arange(0, INNER), P_PAD)
        d_mixed = tl.dot(d_total, tl.trans(down), input_precision="ieee")
        mixed, d_half, d_up = _gates_backward(half, up, d_mixed, APPROXIMATE)
        tl.store(mixed_ptr + place_mixed + first, mixed.to(x.dtype), mask=(channel < D)[:, None])
        joined = tl.trans(tl.join(d_half.to(x.dtype), d_up.to(x.dtype)), 0, 2, 1)
        dx = tl.dot(tl.reshape(joined, (CHANNELS, 2 * INNER)), gate_and_up, dx, input_precision="ieee")
    tl.store(dx_ptr + place, tl.trans(dx).to(x.dtype), mask=inside)


@triton.jit
def _backward_gate_and_up(
    x_ptr, weights_ptr, total_ptr, sums_ptr, tiles,
    P: tl.constexpr, P_PAD: tl.constexpr, D: tl.constexpr, FEATURES: tl.constexpr,
    CHANNELS: tl.constexpr, INNER: tl.constexpr, APPROXIMATE: tl.constexpr,
):  # fmt: skip
    """Gradients of `INNER` features' weights of half the gate and of up, summed over every `SPLITS`-th tile.

    In the first two thirds of fp32 [SPLITS, 3 I, P_PAD]."""
    feature, split = tl.program_id(0) * INNER + tl.arange(0, INNER), tl.program_id(1)
    gate_weights = _weights(weights_ptr, feature, P_PAD)
    up_weights = _weights(weights_ptr, FEATURES + feature, P_PAD)
    down_weights = _weights(weights_ptr, 2 * FEATURES + feature, P_PAD)
    sum_half, sum_up = tl.zeros((INNER, P_PAD), tl.float32), tl.zeros((INNER, P_PAD), tl.float32)
    for tile in range(split, tiles, tl.num_programs(1)):
        row, channel = _tile_of(tile, CHANNELS, D)
        place, inside = _tile(row, channel, P, P_PAD, D)
        x = tl.load(x_ptr + place, mask=inside, other=0.0)
        d_total = tl.load(total_ptr + place, mask=inside, other=0.0)
        half = tl.dot(gate_weights, x, input_precision="ieee")
        up = tl.dot(up_weights, x, input_precision="ieee")
        d_mixed = tl.dot(down_weights, d_total, input_precision="ieee")
        _, d_half, d_up = _gates_backward(half, up, d_mixed, APPROXIMATE)
        sum_half = tl.dot(d_half.to(x.dtype), tl.trans(x), sum_half, input_precision="ieee")
        sum_up = tl.dot(d_up.to(x.dtype), tl.trans(x), sum_up, input_precision="ieee")
    place = split * 3 * FEATURES * P_PAD + feature[:, None] * P_PAD + tl.arange(0, P_PAD)[None, :]
    tl.store(sums_ptr + place, sum_half)
    tl.store(sums_ptr + place + FEATURES * P_PAD, sum_up)


@triton.jit
def _backward_down(
    mixed_ptr, total_ptr, sums_ptr, tiles,
    P: tl.constexpr, P_PAD: tl.constexpr, D: tl.constexpr, FEATURES: tl.constexpr,
    CHANNELS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """The same for down, in the last third: a product of what `_backward_x` left."""
    feature, split = tl.program_id(0) * INNER + tl.arange(0, INNER), tl.program_id(1)
    total = tl.zeros((INNER, P_PAD), tl.float32)
    for tile in range(split, tiles, tl.num_programs(1)):
        row, channel = _tile_of(tile, CHANNELS, D)
        place, inside = _tile(row, channel, P, P_PAD, D)
        d_total = tl.load(total_ptr + place, mask=inside, other=0.0)
        place = (row * D + channel)[:, None] * FEATURES + feature[None, :]
        mixed = tl.load(mixed_ptr + place, mask=(channel < D)[:, None], other=0.0)
        total = tl.dot(tl.trans(mixed), tl.trans(d_total), total, input_precision="ieee")
    place = (split * 3 + 2) * FEATURES * P_PAD + feature[:, None] * P_PAD + tl.arange(0, P_PAD)[None, :]
    tl.store(sums_ptr + place, total)


@triton.jit
def _finish(
    sums_ptr, gate_up_ptr, down_ptr, splits,
    P: tl.constexpr, P_PAD: tl.constexpr, FEATURES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Sums over the splits, laid out as the weights are: [2 I, P] and [P, I]."""
    row, position = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, P_PAD)
    inside = (position < P)[None, :]
    total = tl.zeros((ROWS, P_PAD), tl.float32)
    for split in range(splits):
        place = split * 3 * FEATURES * P_PAD + row[:, None] * P_PAD + position[None, :]
        total += tl.load(sums_ptr + place, mask=inside, other=0.0)
    if tl.program_id(0) * ROWS < 2 * FEATURES:
        total = tl.where(row[:, None] < FEATURES, total * 0.5, total)
        tl.store(gate_up_ptr + row[:, None] * P + position[None, :], total, mask=inside)
    else:
        tl.store(down_ptr + position[None, :] * FEATURES + row[:, None] - 2 * FEATURES, total, mask=inside)


def _tilings(x: Tensor) -> Tilings:
    return SINGLE if x.is_cuda and x.dtype == torch.float32 else HALF


def _sizes(x: Tensor, features: int) -> dict[str, int]:
    """Of x [B, P, D] and the MLP. A tile has all positions, in a power of two that matrix units take."""
    return {"P": x.shape[1], "P_PAD": max(16, triton.next_power_of_2(x.shape[1])), "FEATURES": features}


def _settings(x: Tensor, features: int, tiling: Tiling) -> dict[str, int]:
    """What a kernel is compiled for."""
    settings = {"D": x.shape[2], "CHANNELS": tiling.channels, "INNER": tiling.inner}
    return _sizes(x, features) | settings | {"num_warps": tiling.num_warps, "num_stages": tiling.num_stages}


def _precision(x: Tensor) -> dict[str, bool]:
    """Where the sigmoid may be approximate: its error is then below what rounding its product to x's dtype adds."""
    return {"APPROXIMATE": x.dtype != torch.float32 and x.is_cuda and torch.version.cuda is not None}


@library.custom_op("trm_lab::mix_tokens", mutates_args=())
def _mix(x: Tensor, gate_up: Tensor, down: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    x, features, tiling, sizes = x.contiguous(), down.shape[1], _tilings(x).forward, _sizes(x, down.shape[1])
    weights = x.new_empty((3 * features, sizes["P_PAD"]))
    _prepare[3 * features // ROWS,](gate_up.contiguous(), down.contiguous(), weights, **sizes, ROWS=ROWS)
    y, scale = torch.empty_like(x), x.new_empty((x.shape[0], x.shape[2]), dtype=torch.float32)
    grid = (x.shape[0], math.ceil(x.shape[2] / tiling.channels))
    _forward[grid](x, weights, y, scale, eps, **_settings(x, features, tiling), **_precision(x))
    return y, scale, weights


@register_flop_formula(torch.ops.trm_lab.mix_tokens)
def _flops(x: torch.Size, gate_up: torch.Size, down: torch.Size, eps: float, **_: object) -> int:
    """Operations, as the plain path's two products have them."""
    rows, P, D = x
    return 2 * rows * D * P * (gate_up[0] + down[1])


@_mix.register_fake
def _(x: Tensor, gate_up: Tensor, down: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    scale = x.new_empty((x.shape[0], x.shape[2]), dtype=torch.float32)
    return y, scale, x.new_empty((3 * down.shape[1], _sizes(x, down.shape[1])["P_PAD"]))


@library.custom_op("trm_lab::mix_tokens_backward", mutates_args=())
def _mix_backward(
    x: Tensor, gate_up: Tensor, down: Tensor, y: Tensor, scale: Tensor, weights: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    x, dy, features, tilings = x.contiguous(), dy.contiguous(), down.shape[1], _tilings(x)
    rows, _, D = x.shape
    d_total, dx, mixed = torch.empty_like(x), torch.empty_like(x), x.new_empty((rows, D, features))
    settings = _settings(x, features, tilings.backward_x)
    grid = (rows, math.ceil(D / tilings.backward_x.channels))
    _backward_x[grid](x, weights, y, scale, dy, d_total, dx, mixed, **settings, **_precision(x))
    tiles = [rows * math.ceil(D / tiling.channels) for tiling in (tilings.gate_and_up, tilings.down)]
    splits = min(SPLITS, *tiles)
    sums = x.new_empty((splits, *weights.shape), dtype=torch.float32)
    settings = _settings(x, features, tilings.gate_and_up)
    grid = (features // tilings.gate_and_up.inner, splits)
    _backward_gate_and_up[grid](x, weights, d_total, sums, tiles[0], **settings, **_precision(x))
    settings = _settings(x, features, tilings.down)
    _backward_down[features // tilings.down.inner, splits](mixed, d_total, sums, tiles[1], **settings)
    d_gate_up, d_down = (torch.empty_like(w, memory_format=torch.contiguous_format) for w in (gate_up, down))
    _finish[3 * features // ROWS,](sums, d_gate_up, d_down, splits, **_sizes(x, features), ROWS=ROWS)
    return dx, d_gate_up, d_down


@_mix_backward.register_fake
def _(
    x: Tensor, gate_up: Tensor, down: Tensor, y: Tensor, scale: Tensor, weights: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dx, d_gate_up, d_down = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, gate_up, down))
    return dx, d_gate_up, d_down


def _keep(ctx, inputs, output) -> None:
    x, gate_up, down, _ = inputs
    ctx.save_for_backward(x, gate_up, down, *output)


def _differentiate(ctx, dy: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor, Tensor, None]:
    return *_mix_backward(*ctx.saved_tensors, dy), None


_mix.register_autograd(_differentiate, setup_context=_keep)


def mix_tokens(x: Tensor, gate_up: Tensor, down: Tensor, eps: float) -> Tensor:
    """``norm(x + mlp_t(x))`` over the positions of x [B, P, D], in its dtype; weights [2 I, P] and [P, I] of any.

    Products accumulate in fp32, and nothing is rounded between the second product and the norm's result. The sigmoid
    comes from the hardware's tanh where x is in half precision on an NVIDIA GPU. ValueError where I is no multiple of
    128.
    """
    if down.shape[1] % FEATURES:
        raise ValueError(f"the MLP has {down.shape[1]} inner features: the kernel takes multiples of {FEATURES}")
    return _mix(x, gate_up, down, eps)[0]
