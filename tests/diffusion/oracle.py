"""Latents on the sphere and a perfect network for them, in fp64."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.process import ModelPrediction, NoiseProcess, Prediction


def sphere_latents(batch: int = 3, length: int = 5, channels: int = 16, seed: int = 0) -> Tensor:
    """fp64 [batch, length, channels], each token of root mean square 1."""
    z = torch.randn(batch, length, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return z / z.square().mean(-1, keepdim=True).sqrt()


def relative_error(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm())


class Oracle:
    """Knows x0 and outputs what a network of one kind should, rounded to fp32; records what it is asked."""

    def __init__(self, process: NoiseProcess, kind: Prediction, truth: Tensor):
        self.process, self.kind, self.truth = process, kind, truth
        self.seen: list[tuple[int, Tensor]] = []

    def __call__(self, x_t: Tensor, t: Tensor) -> ModelPrediction:
        assert t.dtype == torch.int64 and t.shape == (len(x_t),) and x_t.dtype == torch.float32
        self.seen.append((int(t[0]), x_t.clone()))
        alpha, sigma = exact_coefficients(self.process, t)
        eps = (x_t.double() - alpha * self.truth) / sigma
        output = {"eps": eps, "x0": self.truth, "v": alpha * eps - sigma * self.truth}[self.kind]
        return self.process.convert(self.kind, output.float(), x_t, t)


def exact_coefficients(process: NoiseProcess, t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha_t and sigma_t in fp64, [B, 1, 1]."""
    abar = process.alphas_cumprod[t].view(-1, 1, 1)
    return abar.sqrt(), (1 - abar).sqrt()
