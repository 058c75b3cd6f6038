"""Fast paths for GPUs, each beside the plain path that defines it and never the default.

    kernels = find("auto", torch.bfloat16, length=97, hidden_size=512, num_heads=8, mlp_t=True)
    block = Block(512, 8, 4, 1e-5, mlp_length=97, kernels=kernels)

``triton`` is our own kernels, ``auto`` the fastest of them and of those of the packages that are installed. All were
measured on Hopper GPUs (docs/performance.md); elsewhere ``auto`` is the plain path.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.kernels.attention import attend, is_faster
from models.kernels.swiglu import gated_mlp

HOPPER = 9  # major compute capability
LONGEST_MIX = 128  # positions that our kernel's tile has room for on the chip
WIDTHS = 16  # of which QuACK's products take multiples
HEAD_WIDTHS, WIDEST_HEAD = 8, 128  # what FlashAttention-4 takes


@dataclass(frozen=True)
class Kernels:
    """What takes the place of the plain path's parts, None for those that stay.

    `mix_tokens` (x, gate_up, down, eps): ``norm(x + mlp_t(x))`` over positions. `gated_mlp` (x, gate_up, down): SwiGLU.
    `attention` (query, key, value): softmax attention over [batch, length, heads, head_dim].
    """

    mix_tokens: Callable[[Tensor, Tensor, Tensor, float], Tensor] | None = None
    gated_mlp: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    attention: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None

    def __str__(self) -> str:
        return ", ".join(name for name, kernel in vars(self).items() if kernel is not None) or "plain"


PLAIN = Kernels()


def find(kind: str, dtype: torch.dtype, *, length: int, hidden_size: int, num_heads: int, mlp_t: bool) -> Kernels:
    """The kernels of a `kind` (``torch``, ``triton``, ``auto``) for blocks of this shape on the current GPU."""
    if kind == "torch":
        return PLAIN
    if kind == "triton":
        return Kernels(mix_tokens=_mix_tokens())
    if dtype == torch.float32 or not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != HOPPER:
        return PLAIN
    head_dim = hidden_size // num_heads
    return Kernels(
        mix_tokens=_mix_tokens() if mlp_t and length <= LONGEST_MIX and _imports("triton") else None,
        gated_mlp=gated_mlp if hidden_size % WIDTHS == 0 and _imports("quack.gemm_interface") else None,
        attention=None if mlp_t else _attention(length, num_heads, head_dim),
    )


@functools.cache
def _imports(module: str) -> bool:
    """Whether an optional package is there and works; one that is there and does not is named on stderr, once."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:
        return False
    except (ImportError, OSError, RuntimeError, TypeError, AttributeError) as error:
        print(f"warning: kernels=auto goes without {module}: {' '.join(str(error).split())[:200]}", file=sys.stderr)
        return False
    return True


def _mix_tokens() -> Callable[[Tensor, Tensor, Tensor, float], Tensor]:
    from models.kernels.token_mixing import mix_tokens  # here, because Triton is there on GPUs only

    return mix_tokens


def _attention(length: int, heads: int, head_dim: int) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    fits = head_dim % HEAD_WIDTHS == 0 and head_dim <= WIDEST_HEAD
    return attend if fits and _imports("flash_attn.cute.interface") and is_faster(length, heads, head_dim) else None
