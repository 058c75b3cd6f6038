"""The forward process and what a network may predict of it: ``x_t = alpha_t x_0 + sigma_t eps``, variance preserving.

Ho et al. 2020 (equation 4) for the process; Salimans & Ho 2022 (section 4) for v = alpha eps - sigma x_0; Hang et al.
2023 for the min-SNR weights; Karras et al. 2022 (table 1) for the log-normal noise levels. Everything is computed in
fp32, whatever the dtype of the latents: bf16 has three digits, and the difference between x_t and its noise needs more.

    process = NoiseProcess(alphas_cumprod("linear", 1000))
    x_t = process.add_noise(x0, noise, t)
    loss = (network(x_t, t) - process.target("v", x0, noise, t)).square().mean()
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

Prediction = Literal["eps", "x0", "v"]
Weighting = Literal["uniform", "min_snr", "snr"]
PREDICTIONS: tuple[str, ...] = get_args(Prediction)
WEIGHTINGS: tuple[str, ...] = get_args(Weighting)


class ModelPrediction(NamedTuple):
    """One prediction in its three forms: fp32 tensors of one shape; with x_t, any of them gives the others."""

    eps: Tensor
    x0: Tensor
    v: Tensor


class NoiseProcess(nn.Module):
    """The variance-preserving process of a table ``alphas_cumprod`` [T], fp64, from `diffusion.schedule`.

    Attributes: `alphas_cumprod` fp64 [T] on the CPU, for samplers; buffers `alpha` = sqrt(abar) and `sigma` =
    sqrt(1 - abar), fp32 [T], which follow the module's device and are never saved: the schedule's settings are.
    Timesteps t are int64 [B] in 0..T-1; latents [B, ..., D] of any floating dtype; results are fp32.

    Raises ValueError for a table that is not strictly decreasing inside (0, 1).
    """

    alpha: Tensor
    sigma: Tensor

    def __init__(self, alphas_cumprod: Tensor):
        super().__init__()
        table = alphas_cumprod.detach().to(torch.float64)
        if table.ndim != 1 or len(table) == 0:
            raise ValueError(
                f"alphas_cumprod has shape {list(table.shape)}; it must be a table [T] of at least one step"
            )
        if not (bool((table > 0).all()) and bool((table < 1).all()) and bool((table.diff() < 0).all())):
            raise ValueError(
                "alphas_cumprod must decrease strictly and lie inside (0, 1): take it from schedule.alphas_cumprod"
            )
        self.alphas_cumprod = table
        # From fp64: 1 - abar in fp32 has lost two digits of a small sigma before the root is taken.
        self.register_buffer("alpha", table.sqrt().to(torch.float32), persistent=False)
        self.register_buffer("sigma", (1 - table).sqrt().to(torch.float32), persistent=False)

    @property
    def num_steps(self) -> int:
        return len(self.alphas_cumprod)

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, fp32 [B, 1, ...] with as many dimensions as `like`."""
        shape = (-1,) + (1,) * (like.ndim - 1)
        return self.alpha[t].view(shape), self.sigma[t].view(shape)

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio ``alpha^2 / sigma^2`` (a power ratio, no unit), fp32 [B]."""
        return (self.alpha[t] / self.sigma[t]).square()

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t for x0 and noise, each [B, ..., D]."""
        alpha, sigma = self.coefficients(t, x0)
        return alpha * x0.float() + sigma * noise.float()

    def target(self, kind: Prediction, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What a network of this kind should output for the x_t of `add_noise`."""
        if kind == "eps":
            return noise.float()
        if kind == "x0":
            return x0.float()
        if kind == "v":
            alpha, sigma = self.coefficients(t, x0)
            return alpha * noise.float() - sigma * x0.float()
        raise ValueError(unknown("prediction", kind, PREDICTIONS))

    def convert(self, kind: Prediction, output: Tensor, x_t: Tensor, t: Tensor) -> ModelPrediction:
        """All three forms of a network's `output` of this kind at x_t.

        ``eps -> x0`` divides by alpha_t: an error of the network at t = T - 1 comes out 1/alpha_T times larger (157
        times for the linear schedule, 2e4 times for the cosine one, where fp32 rounding of eps alone is 5e-4 of x0).
        """
        alpha, sigma = self.coefficients(t, x_t)
        output, x_t = output.float(), x_t.float()
        if kind == "x0":
            x0, eps = output, (x_t - alpha * output) / sigma
        elif kind == "eps":
            x0, eps = (x_t - sigma * output) / alpha, output
        elif kind == "v":
            return ModelPrediction(eps=sigma * x_t + alpha * output, x0=alpha * x_t - sigma * output, v=output)
        else:
            raise ValueError(unknown("prediction", kind, PREDICTIONS))
        return ModelPrediction(eps=eps, x0=x0, v=alpha * eps - sigma * x0)


def loss_weight(kind: Prediction, snr: Tensor, weighting: Weighting, gamma: float = 5.0) -> Tensor:
    """Weight fp32 [B] of the squared error of an output of this kind, for `snr` [B].

    "uniform": 1, the network's own mean squared error. "snr": the loss in x0 weighted by S, which is the error in eps.
    "min_snr": the loss in x0 weighted by min(S, gamma) (Hang et al. 2023), that is min(S, gamma) / S for eps and
    min(S, gamma) / (S + 1) for v; at S = 0 the limits are taken, so that no weight is infinite or NaN.
    """
    snr = snr.float()
    if weighting == "uniform":
        return torch.ones_like(snr)
    if weighting == "min_snr":
        clipped = snr.clamp(max=gamma)
    elif weighting == "snr":
        clipped = snr
    else:
        raise ValueError(unknown("weighting", weighting, WEIGHTINGS))
    if kind == "x0":
        return clipped
    if kind == "v":
        return clipped / (snr + 1)
    if kind == "eps":
        return torch.where(snr > 0, clipped / snr.clamp(min=torch.finfo(torch.float32).tiny), 1.0)
    raise ValueError(unknown("prediction", kind, PREDICTIONS))


def stratify(
    uniform: Tensor, first_slot: int = 0, global_batch: int | None = None, order: Tensor | None = None
) -> Tensor:
    """Spread `uniform` [B] in [0, 1) evenly: ``(stratum + u) / global_batch``, fp64 [B].

    The rows are slots first_slot..first_slot+B-1 of a global batch (by default the whole of it), and each owns one of
    `global_batch` equal intervals, so that what is drawn does not depend on how many processes share the batch.
    `order` int64 [global_batch], a permutation, says which interval a slot has. Give a fresh one at every step where
    slots are tied to data: otherwise a slot's data would see one band of noise levels only.
    """
    global_batch = len(uniform) if global_batch is None else global_batch
    slots = torch.arange(first_slot, first_slot + len(uniform), device=uniform.device)
    if order is not None:
        slots = order[slots]
    return (slots.double() + uniform.double()) / global_batch


def stratified_timesteps(
    uniform: Tensor,
    num_steps: int,
    first_slot: int = 0,
    global_batch: int | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """Uniform timesteps int64 [B] in 0..num_steps-1, one in each of `global_batch` equal intervals: see `stratify`."""
    spread = stratify(uniform, first_slot, global_batch, order)
    # fp32 numbers close to 1 can round to it, and T is no timestep.
    return (spread * num_steps).long().clamp(max=num_steps - 1)


def lognormal_timesteps(uniform: Tensor, process: NoiseProcess, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """EDM's training distribution, ln(sigma / alpha) ~ Normal(mean, std), as the nearest timesteps, int64 [B].

    `uniform` [B] in [0, 1), drawn as is or through `stratify`, goes through the inverse of the normal's distribution
    function. The published mean is for data of standard deviation 0.5. Levels beyond about two standard deviations are
    hardly ever drawn: of 10,000 rows three have sigma/alpha above 18, and none is near the end of a schedule.
    """
    # Clamped inside (0, 1), whose ends map to infinities: 5.6 standard deviations either side.
    normal = torch.special.ndtri(uniform.double().clamp(1e-8, 1 - 1e-8))
    levels = (process.sigma.double() / process.alpha.double()).log()
    boundaries = (levels[1:] + levels[:-1]) / 2
    return torch.searchsorted(boundaries, mean + std * normal)


def unknown(what: str, value: str, known: tuple[str, ...]) -> str:
    return f"{what}={value!r} is not known; choose one of {', '.join(known)}"
