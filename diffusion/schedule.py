"""Noise schedules: tables of ``abar_t = alpha_t^2``, the share of signal left after t + 1 of T steps.

- "linear": betas evenly spaced from 1e-4 to 0.02 (Ho et al. 2020), meant for 1000 steps.
- "cosine": ``abar(u) = cos^2(pi/2 (u + s) / (1 + s))``, s = 0.008, betas up to 0.999 (Nichol & Dhariwal 2021, eq. 17).
- "sigmoid": ``abar(u)`` falls as a sigmoid from `start` to `end` (Jabri et al. 2022, algorithm 1).
- "edm": the levels s of Karras et al. 2022 (equation 5), between sigma_min and sigma_max, closer together where small.

EDM adds noise without shrinking the signal, ``x_0 + s n``. Multiplied by alpha = 1 / sqrt(1 + s^2) that is the
variance-preserving process with sigma = s / sqrt(1 + s^2). Latents here have standard deviation sigma_data = 1. EDM's
preconditioned denoiser ``D = c_skip x + c_out F(c_in x)`` then has c_in = alpha, so that F sees x_t = alpha x;
c_skip = alpha^2, so that c_skip x = alpha x_t; and c_out = sigma. Hence ``D = alpha x_t + sigma F``: **EDM's
preconditioning is v-prediction** with F = -v, and its loss weight (s^2 + 1) / s^2 on D is weight 1 on v.

A latent of many dimensions stays readable under noise that would hide a small image. So any table can be shifted:
sigma / alpha is multiplied by a factor, of sqrt(dimensions / 4096) in Zheng et al. 2025 ("Diffusion Transformers with
Representation Autoencoders"), which moves the timesteps to where there is something to learn.

    abar = alphas_cumprod("linear", 1000, shift=3.5)
    check_terminal_snr(abar)
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Schedule = Literal["linear", "cosine", "sigmoid", "edm"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)

MAX_BETA = 0.999


def alphas_cumprod(schedule: Schedule, steps: int, *, shift: float = 1.0, **settings: float) -> Tensor:
    """The table abar_0 > ... > abar_{T-1}, fp64 [steps].

    `shift` multiplies sigma / alpha at every step; `settings` are the keywords of `_unshifted`. Raises ValueError for
    an unknown schedule or settings that give no decreasing table.
    """
    if not shift > 0:
        raise ValueError(f"noise.shift={shift} must be above 0")
    abar = _unshifted(schedule, steps, **settings)
    return abar / (abar + shift**2 * (1 - abar))


def _unshifted(
    schedule: Schedule,
    steps: int,
    *,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    cosine_offset: float = 0.008,
    sigmoid_start: float = -3.0,
    sigmoid_end: float = 3.0,
    sigmoid_tau: float = 1.0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> Tensor:
    """Each schedule reads its own settings and ignores the others."""
    if schedule not in SCHEDULES:
        raise ValueError(f"noise schedule {schedule!r} is not known; choose one of {', '.join(SCHEDULES)}")
    if steps < 1:
        raise ValueError(f"noise.steps={steps} must be at least 1")
    if schedule == "linear":
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"beta_start={beta_start} and beta_end={beta_end} must satisfy 0 < start <= end < 1")
        betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
        return (1 - betas).cumprod(0)
    if schedule == "edm":
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"sigma_min={sigma_min} and sigma_max={sigma_max} must satisfy 0 < min < max")
        # One step alone is the last level: sampling starts there.
        ramp = torch.linspace(0, 1, steps, dtype=torch.float64) if steps > 1 else torch.ones(1, dtype=torch.float64)
        low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
        return 1 / (1 + (low + ramp * (high - low)) ** (2 * rho))
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    if schedule == "cosine":
        return _clipped(torch.cos((u + cosine_offset) / (1 + cosine_offset) * math.pi / 2).square())
    if not sigmoid_start < sigmoid_end or sigmoid_tau <= 0:
        raise ValueError(f"sigmoid_start={sigmoid_start} must lie below sigmoid_end={sigmoid_end}, and tau above 0")
    falling = torch.sigmoid(-(u * (sigmoid_end - sigmoid_start) + sigmoid_start) / sigmoid_tau)
    return _clipped((falling - falling[-1]) / (falling[0] - falling[-1]))


def _clipped(curve: Tensor) -> Tensor:
    """The table of a curve abar(u), given at u = 0, 1/T, ..., 1, with every beta at most `MAX_BETA`.

    Both curves end at abar = 0, where eps-prediction would divide by zero.
    """
    betas = (1 - curve[1:] / curve[:-1]).clamp(max=MAX_BETA)
    return (1 - betas).cumprod(0)


def terminal_snr(abar: Tensor) -> float:
    """Signal-to-noise ratio abar / (1 - abar) of the last step."""
    last = float(abar[-1])
    return last / (1 - last) if last < 1 else math.inf  # a shift far below 1 leaves no noise that fp64 could tell


def check_terminal_snr(abar: Tensor, limit: float = 1e-3) -> None:
    """Refuse a schedule that does not end in noise: samplers start from pure noise, training would never have seen it.

    Raises ValueError naming the ratio and the remedies (Lin et al. 2023, "Common Diffusion Noise Schedules and Sample
    Steps are Flawed").
    """
    snr = terminal_snr(abar)
    if not snr <= limit:
        raise ValueError(
            f"the noise schedule of {len(abar)} steps ends at SNR {snr:.2g}, not in noise (at most {limit:g}): "
            "raise noise.steps or noise.beta_end, or use noise=cosine, sigmoid or edm"
        )
