"""Floating-point operations and memory by counting, before anything runs: the modules are traced on meta tensors.

An operation is a multiplication or an addition of a matrix product or of attention; norms, activations and other
element-wise work are left out, as is usual for "model FLOPs" (PaLM, Chowdhery et al. 2022, appendix B).

Usage: ``teacher_flops(teacher)["act_step"] / 1e9`` is GFLOP for one puzzle.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from models.losses import ACTLossHead

# A backward pass has a product for the input and one for the weights where the forward pass has one.
TRAINING_FACTOR = 3

# fp32: a weight, its gradient, AdamW's two moments and the running average.
BYTES_PER_TRAINED_PARAMETER = 5 * 4


class ModelledTeacher(Protocol):
    """What is asked of a teacher here; `training.teacher.Teacher` has it."""

    @property
    def model(self) -> ACTLossHead: ...


def on_meta(module: nn.Module) -> nn.Module:
    """A copy of a module without its values."""
    return copy.deepcopy(module).to("meta")


def forward_flops(function: Callable[..., Any], *args: Any, **options: Any) -> int:
    """Operations of one call of a function or module, whose tensors should be on the meta device."""
    with FlopCounterMode(display=False) as counter:
        function(*args, **options)
    return counter.get_total_flops()


def teacher_flops(teacher: ModelledTeacher) -> dict[str, float]:
    """Operations of one puzzle: ``application`` of a level (the mean of an H-cycle's), ``h_cycle``, ``act_step``
    (all H-cycles, embeddings and read-out) and ``trajectory`` (`halt_max_steps` of them)."""
    model: Any = on_meta(teacher.model.model)
    config, inner = model.config, model.inner
    carry = inner.empty_carry(1)
    cells = torch.zeros(1, config.seq_len, dtype=torch.int32, device="meta")
    cos_sin = None if inner.rotary is None else inner.rotary()
    with torch.no_grad():
        h_cycle = forward_flops(inner.cycle, carry, torch.empty_like(next(iter(vars(carry).values()))), cos_sin)
        act_step = forward_flops(inner, carry, {"inputs": cells, "puzzle_identifiers": cells[:, 0]})
    return {
        "application": h_cycle / (config.L_cycles + 1),
        "h_cycle": float(h_cycle),
        "act_step": float(act_step),
        "trajectory": float(act_step * config.halt_max_steps),
    }


def step_flops(teacher: ModelledTeacher) -> float:
    """Operations of a training step of any ACT model on one puzzle, its backward pass included: what has gradients
    costs three times as much, and a second pass for the continue head counts too."""
    taught = teacher.model.model
    with torch.device("meta"):  # the plain path, all of whose backward passes can be counted
        model: Any = type(taught)(taught.config.model_dump() | {"kernels": "torch"})
    cells = torch.zeros(1, model.config.seq_len, dtype=torch.int32, device="meta")
    batch = {"inputs": cells, "labels": cells, "puzzle_identifiers": cells[:, 0]}
    model.train()
    carry = model.initial_carry(batch)

    def step() -> None:
        _, outputs = model(carry=carry, batch=batch, min_halt_steps=carry.steps)
        answers = [value for value in outputs.values() if value.requires_grad]
        sum(answer.sum(dtype=torch.float32) for answer in answers).backward()

    return forward_flops(step)


def head_flops(head: Any) -> dict[str, float]:
    """Operations of a diffusion head on one row: ``forward`` (one network evaluation) and ``training`` (with the
    backward pass). What activation checkpointing computes again is not counted."""
    with torch.no_grad():
        forward = forward_flops(*_network_call(head, 1))
    return {"forward": float(forward), "training": float(TRAINING_FACTOR * forward)}


def training_bytes(head: Any, rows: int) -> int:
    """Memory of a training step on `rows` rows, uncompiled, an upper bound: weights, what belongs to them (gradient,
    moments, average), and what the forward pass keeps for the backward pass."""
    parameters = sum(parameter.numel() for parameter in head.parameters())
    one, two = (_kept_bytes(head, count) for count in (1, 2))
    return parameters * BYTES_PER_TRAINED_PARAMETER + one + (rows - 1) * (two - one)


def _kept_bytes(head: Any, rows: int) -> int:
    sizes: dict[int, int] = {}
    kept: list[Tensor] = []  # alive, so that no storage's address comes up twice

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept.append(tensor)
            storage = tensor.untyped_storage()
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    network, *args = _network_call(head, rows)
    with _FusedAttention(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(*args)
    del output
    return sum(sizes.values())


class _FusedAttention(TorchFunctionMode):
    """On the meta device attention is computed in steps and keeps its weights; no GPU's kernel does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention:
            return _Attention.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    """Keeps what a fused kernel keeps: its inputs and its output."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output)
        return output


def _network_call(head: Any, rows: int) -> tuple[Any, ...]:
    """``head.network`` on the meta device and arguments for it."""
    model: Any = on_meta(head)
    config = model.config
    dtype = getattr(torch, config.forward_dtype)
    condition = torch.empty(rows, config.length, config.latent_size, dtype=dtype, device="meta")
    noisy = torch.empty(rows, config.target_blocks * config.length, config.latent_size, device="meta")
    timesteps = torch.zeros(rows, dtype=torch.int64, device="meta")
    return model.network, noisy, timesteps, (condition,) * 3, model.default_types(rows, (condition,) * 3)
