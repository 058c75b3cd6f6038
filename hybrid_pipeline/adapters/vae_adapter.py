"""A Gaussian bottleneck between what was read off the latents and the prefix that says it, as in a β-VAE
(Higgins et al. 2017).

With text as what is to be reconstructed this is the variational information bottleneck (Alemi et al. 2017): the loss
of a description is ``-log p(text | w) + β KL(q(w | latents) || N(0, I))``, both terms in nats a description, the first
summed over its tokens and the second over the dimensions of w. With β = 1 it is the negative evidence lower bound. A
mean on one side and a sum on the other, or a reconstruction without gradient, is how the posterior collapses.

Free bits (Kingma et al. 2016, "Improved variational inference with inverse autoregressive flow", eq. 15): a dimension
whose KL, averaged over the batch, is below a threshold is charged the threshold, so nothing is gained by emptying it.

Usage: ``w, kl = VAEAdapter(size=256, latent_size=32)(features); charge = with_free_bits(kl, 0.02)``
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers import CastedLinear

# Nats of KL above which a dimension counts as used.
USED_NATS = 0.05


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """``KL(N(mean, exp(log_variance)) || N(0, 1))`` in nats, elementwise (Kingma and Welling 2014, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def with_free_bits(kl: Tensor, free_bits: float) -> Tensor:
    """What a description is charged for kl [batch, dimensions]: means over rows, none below `free_bits`, summed."""
    return kl.mean(0).clamp_min(free_bits).sum()


def beta_at(step: int, beta: float, warmup_steps: int) -> float:
    """β rises linearly from 0 over the first `warmup_steps` steps (Bowman et al. 2016).

    ``hybrid_describe.py`` counts all steps of a run: where those for words are as many, the language model's steps have
    the whole price from their first on, and only the words are learnt before they are priced.
    """
    return beta if step >= warmup_steps else beta * step / warmup_steps


class VAEAdapter(nn.Module):
    """Features [batch, size] to a sample w [batch, latent_size] and its KL in nats, fp32 [batch, latent_size]."""

    def __init__(self, size: int, latent_size: int):
        super().__init__()
        self.latent_size = latent_size
        self.to_mean = CastedLinear(size, latent_size, bias=True)
        self.to_log_variance = CastedLinear(size, latent_size, bias=True)
        with torch.no_grad():  # every dimension begins as noise of the prior's variance around a mean
            self.to_log_variance.weight.zero_()

    def forward(self, features: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`noise`: standard normal, [batch, latent_size]; without it w is the mean of its distribution."""
        mean, log_variance = self.to_mean(features).float(), self.to_log_variance(features).float()
        kl = gaussian_kl(mean, log_variance)
        return mean if noise is None else mean + (0.5 * log_variance).exp() * noise, kl


@dataclass(frozen=True)
class Collapse:
    """How much each dimension says: mean KL in nats over the rows, fp32 [dimensions]."""

    kl: Tensor

    @property
    def used(self) -> float:
        """Share of the dimensions above `USED_NATS`."""
        return float((self.kl > USED_NATS).float().mean())

    def figures(self) -> dict[str, float]:
        """``kl`` is the sum over dimensions, in nats a description."""
        return {
            "kl": float(self.kl.sum()),
            "kl_largest": float(self.kl.max()),
            "kl_median": float(self.kl.median()),
            "used_dimensions": self.used,
        }
