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
    """Moves latents by up to `size` of their length, every row by a distance of its own, and asks the teacher."""

    def __init__(self, teacher: Teacher, size: float, seed: int, slots: range, device: torch.device):
        self.teacher, self.size = teacher, size
        self._direction = SlotNoise(seed, DIRECTION_STREAM, slots, device)
        self._distance = SlotNoise(seed, DISTANCE_STREAM, slots, device)

    @torch.no_grad()
    def __call__(
        self, step: int, prev: Tensor, other: Tensor, x: Tensor, types: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The moved `prev` and `other` and the update from there, latents [B, P, D] in the teacher's dtype.

        `types` int64 [B]; a row of type 1 does not read `x`, which must be zero there.
        """
        # Uniform in [0, size): the normal distribution function of a normal number.
        scale = self.size * 0.5 * (1 + torch.erf(self._distance(step, (1, 1)) / 2**0.5))
        noise = self._direction(step, (2, 1 + prev.shape[1], prev.shape[2]))
        noise = (noise[:, :, :1] + noise[:, :, 1:]) / 2**0.5
        prev, other = (self._moved(z, scale * noise[:, i]) for i, z in enumerate((prev, other)))
        return prev, other, self._update(prev, other + x, types)

    def _moved(self, latent: Tensor, move: Tensor) -> Tensor:
        """`latent` moved and brought back to the length that each of its tokens had, about 1 in the initial latents."""
        length = latent.float().square().mean(-1, keepdim=True).sqrt()
        moved = rms_norm(latent.float() + length * move, self.teacher.config.rms_norm_eps)
        return (length * moved).to(latent.dtype)

    def _update(self, state: Tensor, injection: Tensor, types: Tensor) -> Tensor:
        """The teacher's updates, each row by the level of its type."""
        inner = self.teacher.model.model.inner
        cos_sin = None if inner.rotary is None else inner.rotary()
        updated = inner.L_level(state, injection, cos_sin)
        if not hasattr(inner, "H_level"):
            return updated
        return torch.where(types.view(-1, 1, 1) == 1, inner.H_level(state, injection, cos_sin), updated)
