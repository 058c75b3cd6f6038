"""Attention by FlashAttention-4 (Zadouri, Shah, Dao et al.), where it beats the library that PyTorch calls.

It does at 916 tokens, by a quarter forwards, and does not at 97, so `is_faster` asks the device.

    mixed = attend(query, key, value) if is_faster(916, 8, 64) else ...
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, library
from torch.utils.flop_counter import register_flop_formula

# Rows and calls of the comparison.
ROWS, CALLS = 64, 10


@library.custom_op("trm_lab::attention", mutates_args=())
def _forward(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and the logarithm of the softmax's denominators, fp32 [batch, heads, length]."""
    from flash_attn.cute.interface import _flash_attn_fwd

    mixed, denominators = _flash_attn_fwd(query, key, value, return_lse=True)[:2]
    return mixed, denominators


@library.custom_op("trm_lab::attention_backward", mutates_args=())
def _backward(
    d_mixed: Tensor, query: Tensor, key: Tensor, value: Tensor, mixed: Tensor, denominators: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from flash_attn.cute.interface import _flash_attn_bwd

    repeatable = torch.are_deterministic_algorithms_enabled()
    d_query, d_key, d_value = _flash_attn_bwd(
        query, key, value, mixed, d_mixed, denominators, deterministic=repeatable
    )[:3]
    return d_query, d_key, d_value


@_forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = query.shape
    return query.new_empty(query.shape), query.new_empty((batch, heads, length), dtype=torch.float32)


@_backward.register_fake
def _(
    d_mixed: Tensor, query: Tensor, key: Tensor, value: Tensor, mixed: Tensor, denominators: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    d_query, d_key, d_value = (query.new_empty(query.shape) for _ in range(3))
    return d_query, d_key, d_value


@register_flop_formula(torch.ops.trm_lab.attention)
def _flops(query: torch.Size, key: torch.Size, value: torch.Size, **_: object) -> int:
    batch, length, heads, head_dim = query
    return 4 * batch * heads * length * key[1] * head_dim


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx, d_mixed: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(d_mixed.contiguous(), *ctx.saved_tensors)


_forward.register_autograd(_differentiate, setup_context=_keep)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention over [batch, length, heads, head_dim], half precision, without a mask -> same, contiguous."""
    return _forward(query, key, value)[0]


def attend_plainly(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same by PyTorch, which chooses a library by device and shape; any precision."""
    mixed = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return mixed.transpose(1, 2)


@functools.cache
def is_faster(length: int, heads: int, head_dim: int) -> bool:
    """Whether `attend` takes less time than `attend_plainly` on this device, forwards and backwards in bf16."""
    shape = (ROWS, length, 3, heads, head_dim)
    return _time(attend, shape) < _time(attend_plainly, shape)


def _time(attention: Callable[[Tensor, Tensor, Tensor], Tensor], shape: tuple[int, ...]) -> float:
    """Milliseconds of `CALLS` calls with query, key and value in dimension 2 of one tensor."""
    generator = torch.Generator("cuda").manual_seed(0)
    packed = torch.randn(shape, device="cuda", dtype=torch.bfloat16, generator=generator).requires_grad_()
    for counted in (False, True):  # the first time it is compiled
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(CALLS if counted else 2):
            with torch.no_grad():
                attention(*packed.unbind(2))
            attention(*packed.unbind(2)).sum().backward()
        end.record()
        end.synchronize()
    return start.elapsed_time(end)
