"""Updates from beside the teacher's path: the inputs moved at random, the teacher's answer for where they then are.

A head that replaces the recursion goes astray, and out there it needs to know the teacher's answer too (Ross et al.
2011, "A Reduction of Imitation Learning and Structured Prediction to No-Regret Online Learning"). Random directions
stand in for those in which it errs: half of a move differs from token to token, half is the same for all tokens of a
latent, because errors add up over many updates where they have a bias.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.layers import rms_norm
from training.slot_noise import SlotNoise
from training.teacher import Teacher

DIRECTION_STREAM, DISTANCE_STREAM = 220, 221  # tell these draws from all others


class Perturbation:
    """Moves the latents of every other row by up to `size` of their length, and asks the teacher.

    Every other one, by turns: the path itself must be learned too, and the teacher's answers cost an application each.
    """

    def __init__(self, teacher: Teacher, size: float, seed: int, slots: range, device: torch.device):
        self.teacher, self.size, self.slots = teacher, size, slots
        self._direction = SlotNoise(seed, DIRECTION_STREAM, device)
        self._distance = SlotNoise(seed, DISTANCE_STREAM, device)

    @torch.no_grad()
    def __call__(
        self, step: int, prev: Tensor, other: Tensor, x: Tensor, types: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`prev`, `other` and `target`, latents [B, P, D], with half of the rows moved, and the updates from there.

        `types` int64 [B]; a row of type 1 does not read `x`, which must be zero there.
        """
        first = (self.slots.start + step) % 2
        pairs = range((self.slots.start + first) // 2, (self.slots.start + first) // 2 + len(prev[first::2]))
        if not pairs:
            return prev, other, target
        # Uniform in [0, size): the normal distribution function of a normal number.
        scale = self.size * 0.5 * (1 + torch.erf(self._distance(step, pairs, (1, 1)) / 2**0.5))
        noise = self._direction(step, pairs, (2, 1 + prev.shape[1], prev.shape[2]))
        noise = (noise[:, :, :1] + noise[:, :, 1:]) / 2**0.5
        prev, other, target = prev.clone(), other.clone(), target.clone()
        for i, latents in enumerate((prev, other)):
            latents[first::2] = self._moved(latents[first::2], scale * noise[:, i])
        target[first::2] = self.teacher.update(prev[first::2], (other + x)[first::2], types[first::2])
        return prev, other, target

    def _moved(self, latent: Tensor, move: Tensor) -> Tensor:
        """`latent` moved and brought back to the length that each of its tokens had, about 1 in the initial latents."""
        length = latent.float().square().mean(-1, keepdim=True).sqrt()
        moved = rms_norm(latent.float() + length * move, self.teacher.config.rms_norm_eps)
        return (length * moved).to(latent.dtype)
