"""Products in fp8 (e4m3) for the passes without gradients: an option that changes numerics, and so never the default.

A recursive model computes most of its passes for their values only. What goes into a product there is the output of a
norm, a sum of such outputs, or that of attention or a gate: numbers around 1, far from both ends of e4m3, which has
three bits of mantissa between 2^-6 and 448 (Micikevicius et al. 2022). So activations are cast as they are, and only
weights are scaled.

    y = fp8_linear(x, weight) if without_gradients else F.linear(x, weight.to(x.dtype))
"""

from __future__ import annotations

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max  # 448, beyond which a cast gives NaN
WIDTHS = 16  # of which the products take multiples
CAPABILITY = (8, 9)  # of the first GPUs that have them


def fits(in_features: int, out_features: int) -> bool:
    """Whether weights of this shape can be multiplied in fp8."""
    return in_features % WIDTHS == 0 and out_features % WIDTHS == 0


def fp8_linear(x: Tensor, weight: Tensor) -> Tensor:
    """``x W^T`` of x [..., in_features] bf16 and weights [out_features, in_features] of any dtype, without gradients.

    Weights are scaled so that their largest is e4m3's; values of x beyond its range, infinity too, become its largest.
    Sums are fp32 but for the few bits that the GPU's fast accumulation drops.
    """
    scale = (weight.detach().abs().amax().to(torch.float32) / LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    narrow = x.detach().reshape(-1, x.shape[-1]).clamp(-LARGEST, LARGEST).to(FP8)
    y = torch._scaled_mm(
        narrow,
        (weight.detach() / scale).to(FP8).t(),
        scale_a=torch.ones_like(scale),
        scale_b=scale,
        out_dtype=x.dtype,
        use_fast_accum=True,
    )
    return y.view(*x.shape[:-1], len(weight))
