"""SwiGLU whose activation is the epilogue of its products, by QuACK (Guo, Dao et al.): for Hopper GPUs.

The plain path, `models.layers.SwiGLU`, writes gate and up, six times as wide as x, and reads them to multiply them.
Here they leave the chip only in a pass with gradients, for the backward pass, whose epilogue turns the gradient of
their product into theirs and computes the product again.

    y = gated_mlp(x, mlp.gate_up_proj.weight, mlp.down_proj.weight)
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, library
from torch.utils.flop_counter import register_flop_formula


@functools.cache
def _config(tile_m: int, tile_n: int) -> Any:
    """Of a product: two tiles a multiprocessor in turn, one in its epilogue while the other multiplies, and two
    multiprocessors that share what they read of the weights: the fastest at 512 channels."""
    from quack.gemm_config import GemmConfig

    return GemmConfig(
        tile_m=tile_m, tile_n=tile_n, pingpong=True, cluster_m=2, cluster_n=1, is_dynamic_persistent=False
    )


def _up(x: Tensor, weights: Tensor, keep: bool) -> tuple[Tensor | None, Tensor]:
    """Gate and up [tokens, 2 I], side by side for each feature, where `keep`; and silu(gate) * up [tokens, I]."""
    from quack.gemm_interface import gemm_gated

    return gemm_gated(x, weights.T, activation="swiglu", store_preact=keep, config=_config(128, 192))


def _down_backward(dy: Tensor, down: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up, side by side like `gates`; and silu(gate) * up again."""
    from quack.gemm_interface import gemm_dgated

    return gemm_dgated(dy, down, gates, activation="swiglu", config=_config(128, 128), dynamic_scheduler=True)


def _interleaved(gate_up: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of gate and up in turn, [2 I, D] in the dtype of the activations."""
    return torch.stack(gate_up.to(dtype).chunk(2), dim=1).flatten(0, 1)


def _tokens(x: Tensor) -> Tensor:
    """[tokens, D], one after another as the products take them, of x [..., D] however it lies."""
    return x.reshape(-1, x.shape[-1]).contiguous()


@library.custom_op("trm_lab::gated_mlp", mutates_args=())
def _forward(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    _, gated = _up(_tokens(x), _interleaved(gate_up, x.dtype), False)
    return (gated @ down.to(x.dtype).T).view(x.shape)


@library.custom_op("trm_lab::gated_mlp_with_gates", mutates_args=())
def _forward_with_gates(x: Tensor, gate_up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    gates, gated = _up(_tokens(x), _interleaved(gate_up, x.dtype), True)
    assert gates is not None
    return (gated @ down.to(x.dtype).T).view(x.shape), gates


@library.custom_op("trm_lab::gated_mlp_backward", mutates_args=())
def _backward(dy: Tensor, x: Tensor, gate_up: Tensor, down: Tensor, gates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dy, x = _tokens(dy), _tokens(x)
    d_gates, gated = _down_backward(dy, down.to(dy.dtype), gates)
    dx = d_gates @ _interleaved(gate_up, x.dtype)
    d_gate_up = (d_gates.T @ x).unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1)
    return dx, d_gate_up.to(gate_up.dtype), (dy.T @ gated).to(down.dtype)


@_forward.register_fake
def _(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_forward_with_gates.register_fake
def _(x: Tensor, gate_up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    tokens = x.numel() // x.shape[-1]
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty((tokens, len(gate_up)))


@_backward.register_fake
def _(dy: Tensor, x: Tensor, gate_up: Tensor, down: Tensor, gates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    tokens = x.numel() // x.shape[-1]
    return x.new_empty((tokens, x.shape[-1])), torch.empty_like(gate_up), torch.empty_like(down)


@register_flop_formula([torch.ops.trm_lab.gated_mlp, torch.ops.trm_lab.gated_mlp_with_gates])
def _flops(x: torch.Size, gate_up: torch.Size, down: torch.Size, **_: object) -> int:
    """Operations of the two products."""
    return 2 * x.numel() * (gate_up[0] + down[1])


def _keep(ctx, inputs, output) -> None:
    x, gate_up, down = inputs
    ctx.save_for_backward(x, gate_up, down, output[1])


def _differentiate(ctx, dy: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    x, *weights, gates = ctx.saved_tensors
    dx, *d_weights = _backward(dy, x, *weights, gates)
    return dx.view(x.shape), *d_weights


_forward_with_gates.register_autograd(_differentiate, setup_context=_keep)


def gated_mlp(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """``(silu(x G^T) * (x U^T)) D^T`` of x [..., D], in its dtype; weights (G, U) [2 I, D] and [D, I] of any.

    Products accumulate in fp32, and gate and up are rounded to the dtype of x for the backward pass only.
    """
    if torch.is_grad_enabled():
        return _forward_with_gates(x, gate_up, down)[0]
    return _forward(x, gate_up, down)
