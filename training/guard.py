"""Stop a run before NaN or infinity reaches its weights."""

from __future__ import annotations

import torch
from torch import Tensor

from datasets.common import InputError


def assert_finite(values: Tensor, step: int) -> None:
    """Stop before the update of `step` unless all `values` (the loss, the gradient's norm) are finite.

    The gradient is summed over the ranks, so all stop. On CUDA the check runs on the device, without a host
    synchronisation: the process dies there, before the update is computed. Elsewhere it is an `InputError`.
    """
    finite = torch.isfinite(values).all()
    if values.device.type == "cuda":
        torch._assert_async(finite, f"step {step}: the loss or the gradient is not finite; no update was made")
    elif not finite:
        raise InputError(
            f"step {step}: the loss or the gradient is not finite; no update was made. "
            "Continue from the last checkpoint with a lower lr or with optim.grad_clip=1.0"
        )
