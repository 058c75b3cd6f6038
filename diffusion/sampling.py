"""Samplers: from noise to latents with the schedulers of `diffusers`, every default that matters set on purpose.

DDPM (Ho et al. 2020), DDIM (Song et al. 2021, eta = 0), DPM-Solver++ 2M (Lu et al. 2022), Heun (Karras et al. 2022).
The chain is *respaced* (Nichol & Dhariwal 2021, section 4): a sampler of n steps gets a fresh scheduler whose n
training steps are the chosen timesteps of the process, in "trailing" spacing, so that T - 1 comes first. Nothing then
depends on how a scheduler guesses its previous timestep: DDIM takes ``t - T // n``, which for n = 7 of 1000 drifts away
from the timesteps visited and ends at the first noise level of the table instead of at the data.

    x0 = sample(lambda x_t, t: head.predict(x_t, t, *conditions), process, noise, sampler="ddim", steps=4)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from diffusion.process import ModelPrediction, NoiseProcess

Sampler = Literal["ddpm", "ddim", "dpm_solver", "heun"]
SAMPLERS: tuple[str, ...] = get_args(Sampler)

Predict = Callable[[Tensor, Tensor], ModelPrediction]
OnStep = Callable[[int, int, Tensor, Tensor], None]


def network_evaluations(sampler: Sampler, steps: int) -> int:
    """Calls of the network that `sample` makes: Heun corrects every step but the last, 2 n - 1; the others make n."""
    _check(sampler, steps)
    return 2 * steps - 1 if sampler == "heun" else steps


def sampling_timesteps(num_steps: int, steps: int) -> list[int]:
    """The `steps` timesteps visited, descending from num_steps - 1: "trailing" spacing, ``round(T (n - i) / n) - 1``.

    Raises ValueError if there are more of them than the process has.
    """
    if not 1 <= steps <= num_steps:
        raise ValueError(f"sampler steps={steps} must lie in 1..{num_steps}, the steps of the noise schedule")
    return [round(num_steps * (steps - i) / steps) - 1 for i in range(steps)]


@torch.no_grad()
def sample(
    predict: Predict,
    process: NoiseProcess,
    noise: Tensor,
    *,
    sampler: Sampler,
    steps: int,
    generator: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Denoise pure `noise` [B, ..., D] in `steps` steps; returns x0 in the network's space, fp32 [B, ..., D].

    ``predict(x_t fp32, t int64 [B])`` is called `network_evaluations` times, first with `noise` itself at t = T - 1.
    Only x0 of what it returns is used. The last step goes to noise level 0, where every sampler returns the predicted
    x0, so one step is one prediction from pure noise. `generator`, on the device of `noise`, draws the noise that DDPM
    adds between steps. ``on_step(i, t, x_t, x0)`` is called after evaluation i with what the network saw and predicted.

    Raises ValueError for an unknown sampler, too many steps, DDPM without a generator, or if `diffusers` is missing.
    """
    _check(sampler, steps)
    timesteps = sampling_timesteps(process.num_steps, steps)
    if sampler == "ddpm" and steps > 1 and generator is None:
        raise ValueError(
            "the ddpm sampler draws noise between its steps: pass a generator, so that samples can be had again"
        )
    scheduler = _scheduler(sampler, process.alphas_cumprod[timesteps].flip(0))
    options: dict[str, Any] = {"generator": generator} if sampler == "ddpm" else {}
    # Heun's sample is x_t / alpha_t. From pure noise that is up to 1 / alpha_T in size while what matters in it, x0, is
    # of size 1: in fp32 the difference of the two would be lost.
    x = noise.float()
    if sampler == "heun":
        x = x.double() / process.alphas_cumprod[-1].sqrt()
    for i, position in enumerate(scheduler.timesteps.tolist()):
        t = timesteps[-1 - int(position)]
        x_t = scheduler.scale_model_input(x, position).float()
        x0 = predict(x_t, torch.full((len(noise),), t, dtype=torch.int64, device=noise.device)).x0.float()
        if on_step is not None:
            on_step(i, t, x_t, x0)
        x = scheduler.step(x0, int(position), x, return_dict=False, **options)[0]
    return x.float()


def _scheduler(sampler: Sampler, abar: Tensor) -> Any:
    """A fresh scheduler (they keep state) whose training steps are the given abar [n], ascending in t."""
    try:
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
        from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
    except ImportError as error:
        raise ValueError(f'sampling needs the package diffusers ({error}): pip install -e ".[diffusion]"') from error
    steps = len(abar)
    previous = torch.cat((torch.ones(1, dtype=torch.float64), abar[:-1]))
    common: dict[str, Any] = {
        "num_train_timesteps": steps,
        "trained_betas": (1 - abar / previous).tolist(),
        "prediction_type": "sample",  # the prediction has been converted, and perhaps projected, already
        "timestep_spacing": "trailing",
        "steps_offset": 0,
    }
    scheduler: Any
    if sampler == "ddpm":
        scheduler = DDPMScheduler(
            **common, variance_type="fixed_small", clip_sample=False, thresholding=False, rescale_betas_zero_snr=False
        )
    elif sampler == "ddim":
        scheduler = DDIMScheduler(
            **common, set_alpha_to_one=True, clip_sample=False, thresholding=False, rescale_betas_zero_snr=False
        )
    elif sampler == "dpm_solver":
        scheduler = DPMSolverMultistepScheduler(
            **common,
            algorithm_type="dpmsolver++",
            solver_order=2,
            solver_type="midpoint",
            lower_order_final=True,
            final_sigmas_type="zero",
            thresholding=False,
            use_karras_sigmas=False,
            rescale_betas_zero_snr=False,
        )
    else:
        scheduler = HeunDiscreteScheduler(**common, clip_sample=False, use_karras_sigmas=False)
    # The schedulers rebuild abar from fp32 betas: at a small alpha, 1 - beta has no digits left, and one step from the
    # end of the cosine schedule would start from abar = 0. As fp64 scalars they leave fp32 samples fp32.
    scheduler.alphas_cumprod = abar
    scheduler.set_timesteps(steps)  # on the CPU: the loop reads them
    if sampler in ("dpm_solver", "heun"):
        scheduler.set_begin_index(0)
    if sampler == "heun":
        scheduler.sigmas = scheduler.sigmas.double()
    return scheduler


def _check(sampler: str, steps: int) -> None:
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler {sampler!r} is not known; choose one of {', '.join(SAMPLERS)}")
    if steps < 1:
        raise ValueError(f"sampler steps={steps} must be at least 1")
