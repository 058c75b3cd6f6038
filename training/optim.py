"""Optimisers and the learning-rate schedule.

`AdamATan2` replaces Adam's division by an arctangent, which needs no epsilon (Everett et al. 2024, "Scaling Exponents
Across Parameterizations and Optimizers"). `SignSGD` updates the rows of the puzzle table that the batch touched.
AdamW comes from PyTorch, and so does Muon but for how its step is computed.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models.sparse_embedding import CastedSparseEmbedding
from training.config_schema import OptimConfig

# Muon orthogonalises the update of a matrix; these are matrices only in shape: look-up tables and read-outs.
NOT_FOR_MUON = ("embed_tokens", "embed_pos", "lm_head", "q_head", "modulation", "time.", "_embedding")


class OptimizerSettings(Protocol):
    """What is asked of a run's configuration here."""

    @property
    def optim(self) -> OptimConfig: ...
    @property
    def lr(self) -> float: ...
    @property
    def beta1(self) -> float: ...
    @property
    def beta2(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...


def learning_rate(step: int, *, base: float, warmup_steps: int, total_steps: int, min_ratio: float) -> float:
    """Linear warm-up to `base`, then a cosine down to ``base * min_ratio``; `step` counts from 1.

    With ``min_ratio=1`` (as published) it is constant after the warm-up.
    """
    if step < warmup_steps:
        return base * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return base * (min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


class AdamATan2(Optimizer):
    """``p <- p (1 - lr wd); p <- p - lr / (1 - beta1^t) * atan2(m, sqrt(v / (1 - beta2^t)))``, m and v as in Adam.

    Pure PyTorch, multi-tensor. The `adam-atan2` package has a CUDA kernel for the same update.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.1,
    ):
        if not (0 <= betas[0] < 1 and 0 <= betas[1] < 1):
            raise ValueError(f"betas={betas} must lie in [0, 1)")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    # The count is a tensor so that it is saved with the moments.
                    self.state[p] = {
                        "step": torch.zeros((), dtype=torch.int64),
                        "exp_avg": torch.zeros_like(p),
                        "exp_avg_sq": torch.zeros_like(p),
                    }
            self._update(group, params)

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        (beta1, beta2), lr = group["betas"], group["lr"]
        grads = [p.grad for p in params if p.grad is not None]
        first = [self.state[p]["exp_avg"] for p in params]
        second = [self.state[p]["exp_avg_sq"] for p in params]
        for p in params:
            self.state[p]["step"] += 1
        count = int(self.state[params[0]]["step"])

        # In this order of operations fp32 runs equal the published ones to the bit; training is chaotic enough
        # for another order to show within a dozen steps.
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_lerp_(second, torch._foreach_mul(grads, grads), 1 - beta2)
        scale = torch._foreach_sqrt(second)
        torch._foreach_div_(scale, math.sqrt(1 - beta2**count))
        updates = [torch.atan2(m, s) for m, s in zip(first, scale, strict=True)]
        torch._foreach_mul_(updates, lr / (1 - beta1**count))
        torch._foreach_sub_(params, updates)


class SignSGD(Optimizer):
    """``w <- w (1 - lr wd) - lr sign(g)`` on the rows that the batch touched, g being the sum over equal identifiers.

    The sum is a product with the matrix of equal identifiers, in fp64: no host synchronisation, the same shapes every
    step, no atomic additions, and a sign that does not depend on the order or the placement of the rows.
    `gather` concatenates the rows of all ranks (the identity in one process).
    """

    def __init__(
        self,
        table: CastedSparseEmbedding,
        base_lr: float = 1e-2,
        weight_decay: float = 0.1,
        gather: Callable[[Tensor], Tensor] = lambda rows: rows,
    ):
        self.table = table
        self.gather = gather
        super().__init__([table.weights], {"lr": base_lr, "base_lr": base_lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        ids, gradients = (self.gather(rows) for rows in self.table.take_touched())
        if len(ids) == 0:
            return
        group = self.param_groups[0]
        precise = torch.float32 if gradients.device.type == "mps" else torch.float64
        equal = (ids.unsqueeze(0) == ids.unsqueeze(1)).to(precise)
        direction = torch.sign(equal @ gradients.to(precise)).to(gradients.dtype)
        weights = self.table.weights
        # Equal identifiers write equal rows, so the order of the writes does not matter.
        weights[ids] = weights[ids] * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * direction


class BatchedMuon(torch.optim.Muon):
    """PyTorch's Muon, which orthogonalises matrices of one shape together: its own loop over matrices takes hundreds of
    kernels a step, each too small for a GPU.

    `found_inf`, as fused AdamW has it: a 0-D tensor on the device, above 0 where the update must change nothing.
    """

    found_inf: Tensor | None = None

    def __init__(self, params: Iterable[Any], lr: float, momentum: float, weight_decay: float):
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for params in by_shape.values():
                self._update(group, params)

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """``m <- lerp(m, g, 1 - beta); p <- (1 - lr wd) p - lr sqrt(max(1, rows / columns)) NS(lerp(g, m, beta))``."""
        lr, beta = group["lr"], group["momentum"]
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        gradients, before = torch.stack([p.grad for p in params if p.grad is not None]), torch.stack(buffers)
        momentum = before.lerp(gradients, 1 - beta)
        directions = orthogonalized(
            gradients.lerp(momentum, beta), group["ns_coefficients"], group["ns_steps"], group["eps"]
        )
        decay: Any = lr * group["weight_decay"]
        if self.found_inf is not None:
            lost = self.found_inf > 0
            momentum, directions = torch.where(lost, before, momentum), directions.masked_fill(lost, 0)
            decay = torch.where(lost, 0.0, decay)
        torch._foreach_copy_(buffers, list(momentum))
        torch._foreach_mul_(params, 1 - decay)
        rows, columns = params[0].shape
        torch._foreach_add_(params, list(directions), alpha=-lr * math.sqrt(max(1, rows / columns)))


def orthogonalized(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Matrices [n, r, c] with singular values brought near 1, in their dtype (Newton-Schulz in bf16, Jordan 2024)."""
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def packaged_adam_atan2() -> type[Optimizer] | None:
    """The `adam-atan2` package's optimiser, where it imports, its CUDA kernel runs and one step agrees with ours."""
    if not torch.cuda.is_available() or importlib.util.find_spec("adam_atan2_backend") is None:
        return None
    from adam_atan2 import AdamATan2 as Packaged  # type: ignore[import-not-found,unused-ignore]

    start = torch.linspace(-1, 1, 64, device="cuda")
    results = []
    for cls in (AdamATan2, Packaged):
        p = nn.Parameter(start.clone())
        p.grad = start.flip(0).clone()
        cls([p], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1).step()
        results.append(p.detach())
    return Packaged if torch.allclose(results[0], results[1], rtol=1e-5, atol=1e-6) else None


def build_optimizers(config: OptimizerSettings, model: nn.Module, fused: bool | None = None) -> list[Optimizer]:
    """The dense optimisers of ``config.optim``: one, or for muon two (AdamW takes all that is no hidden matrix).

    Every group has a `base_lr`, from which `set_learning_rates` makes its `lr`. None where all weights are frozen.
    `fused` is AdamW's own switch.
    """
    params = {key: p for key, p in model.named_parameters() if p.requires_grad}
    if not params:
        return []
    adam: dict[str, Any] = {
        "lr": 0.0,
        "betas": (config.beta1, config.beta2),
        "weight_decay": config.weight_decay,
    }
    everything = {"params": list(params.values()), "base_lr": config.lr}
    if config.optim.name == "adam_atan2":
        return [(packaged_adam_atan2() or AdamATan2)([everything], **adam)]
    if config.optim.name == "adamw":
        return [torch.optim.AdamW([everything], **adam, fused=fused)]
    hidden = {key for key, p in params.items() if p.ndim == 2 and not any(part in key for part in NOT_FOR_MUON)}
    # Decay is multiplied by the rate: scaled so that a step decays matrices as much as it does everything else.
    assert config.optim.muon_lr is not None
    decay = config.weight_decay * config.lr / config.optim.muon_lr
    matrices = {"params": [params[key] for key in params if key in hidden], "base_lr": config.optim.muon_lr}
    rest = {"params": [params[key] for key in params if key not in hidden], "base_lr": config.lr}
    muon: dict[str, Any] = {"lr": 0.0, "momentum": config.optim.muon_momentum, "weight_decay": decay}
    return [BatchedMuon([matrices], **muon), torch.optim.AdamW([rest], **adam, fused=fused)]


def set_learning_rates(
    optimizers: Iterable[Optimizer], step: int, *, warmup_steps: int, total_steps: int, min_ratio: float
) -> None:
    """Give every group the rate that the schedule makes of its `base_lr` at `step`, counted from 1."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                step,
                base=group["base_lr"],
                warmup_steps=warmup_steps,
                total_steps=total_steps,
                min_ratio=min_ratio,
            )
