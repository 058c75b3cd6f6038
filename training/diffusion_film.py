"""A sample, step by step: what can be read out of the noisy latents and of the denoised ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.losses import IGNORE_LABEL_ID
from models.student import row_keys
from training.diffusion_rows import RowBatch, RowLayout
from training.diffusion_sampling import HeadSampler, read_answers
from training.harvest import EvalBatch
from training.teacher import Teacher


def record_film(
    teacher: Teacher, layout: RowLayout, sampler: HeadSampler, batch: EvalBatch, puzzles: int
) -> dict[str, Any] | None:
    """One telling sample of the first ACT step's last z_H among `puzzles`: numpy arrays of T denoising steps.

    ``timesteps`` [T]; ``noisy`` and ``clean`` [T, seq_len], tokens read out of x_t and of the predicted x_0; ``inputs``
    and ``labels`` [seq_len]. None where no row can be read out.
    """
    few = batch.entries[:puzzles]
    keys = row_keys(batch.batch["inputs"][:puzzles])
    # Of one puzzle's rows: those of the first ACT step whose z_H can be read out; the last of them.
    first = np.flatnonzero(layout.answers & (layout.cells[:, 0] < layout.h_cycles * len(layout.position_types)))
    if not len(first):
        return None
    rows = next(layout.only(first[-1:]).batches(few, keys, len(few)))
    steps: list[tuple[int, Tensor, Tensor]] = []

    def on_step(i: int, t: int, x_t: Tensor, x_0: Tensor) -> None:
        steps.append((t, _read(teacher, sampler, rows, x_t), _read(teacher, sampler, rows, x_0)))

    sampler.draw(rows.conditions, rows.types, rows.key, on_step)
    noisy, clean = (torch.stack([step[part] for step in steps]).cpu().numpy() for part in (1, 2))  # type: ignore[misc]
    inputs, labels = (batch.batch[key][:puzzles].cpu().numpy() for key in ("inputs", "labels"))
    row = _telling(noisy, clean, labels)
    return {
        "timesteps": np.array([step[0] for step in steps]),
        "noisy": noisy[:, row],
        "clean": clean[:, row],
        "inputs": inputs[row],
        "labels": labels[row],
    }


def _read(teacher: Teacher, sampler: HeadSampler, rows: RowBatch, latents: Tensor) -> Tensor:
    """Tokens [b, seq_len]; the noisy latents are brought to the scale that the read-out knows, RMS 1."""
    z_H = sampler.denormalize(latents, sampler.block_types(rows.conditions, rows.types))[:, rows.answer_block]
    return read_answers(teacher, z_H * torch.rsqrt(z_H.square().mean(-1, keepdim=True) + 1e-8))[0]


def _telling(noisy: np.ndarray, clean: np.ndarray, labels: np.ndarray) -> int:
    """Of [T, n, seq_len] the puzzle that ends up right, or nearly, with the most wrong cells at first."""
    asked = labels != IGNORE_LABEL_ID
    wrong_at_end = (asked & (clean[-1] != labels)).sum(-1)
    wrong_on_the_way = (asked & (clean != labels)).sum((0, -1))
    return int(np.argmax(wrong_on_the_way - wrong_at_end * (1 + wrong_on_the_way.max())))
