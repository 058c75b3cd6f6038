"""Samplers: a perfect network gives perfect samples; every default of diffusers that would spoil them is shown."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from torch import Tensor

from diffusion.process import PREDICTIONS, ModelPrediction, NoiseProcess, Prediction
from diffusion.sampling import SAMPLERS, Predict, Sampler, network_evaluations, sample, sampling_timesteps
from diffusion.schedule import SCHEDULES, Schedule, alphas_cumprod
from tests.diffusion.oracle import Oracle, exact_coefficients, relative_error, sphere_latents

STEPS = (1, 4, 7, 10)

# diffusers calls np.array on tensors, which NumPy 2 would like them to do otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def make(schedule: Schedule = "linear") -> NoiseProcess:
    return NoiseProcess(alphas_cumprod(schedule, 1000))


def draw_noise(truth: Tensor, seed: int = 11) -> Tensor:
    return torch.randn(truth.shape, generator=torch.Generator().manual_seed(seed))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_oracle_gives_perfect_samples(schedule: Schedule, kind: Prediction, sampler: Sampler) -> None:
    process, truth = make(schedule), sphere_latents()
    for steps in STEPS:
        oracle = Oracle(process, kind, truth)
        noise = draw_noise(truth)
        found = sample(oracle, process, noise, sampler=sampler, steps=steps, generator=generator())
        assert found.dtype == torch.float32 and found.shape == truth.shape
        assert relative_error(found, truth) < 1e-3, steps
        assert len(oracle.seen) == network_evaluations(sampler, steps)
        assert oracle.seen[0][0] == 999  # from pure noise, at the last timestep
        torch.testing.assert_close(oracle.seen[0][1], noise, rtol=0, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", ["ddim", "dpm_solver", "heun"])
def test_what_the_network_sees_lies_on_the_path_of_the_equation(schedule: Schedule, sampler: Sampler) -> None:
    """With a perfect network the ODE's path is known: x_t = alpha_t x0 + sigma_t eps with the eps it started from."""
    process, truth = make(schedule), sphere_latents()
    oracle, noise = Oracle(process, "x0", truth), draw_noise(truth)
    sample(oracle, process, noise, sampler=sampler, steps=7)
    alpha, sigma = exact_coefficients(process, torch.tensor([999]))
    eps = (noise.double() - alpha * truth) / sigma
    for t, x_t in oracle.seen:
        alpha, sigma = exact_coefficients(process, torch.tensor([t]))
        expected = alpha * truth + sigma * eps
        assert relative_error(x_t, expected) < 1e-5, t


def test_ddpm_visits_noise_of_the_right_size() -> None:
    """Given x0, ancestral sampling keeps x_t - alpha_t x0 at standard deviation sigma_t, with fresh noise."""
    process, truth = make(), sphere_latents(8, 50, 64)
    oracle = Oracle(process, "x0", truth)
    sample(oracle, process, draw_noise(truth), sampler="ddpm", steps=10, generator=generator())
    residuals = []
    for t, x_t in oracle.seen:
        alpha, sigma = exact_coefficients(process, torch.tensor([t]))
        residuals.append((x_t.double() - alpha * truth) / sigma)
        assert float(residuals[-1].std()) == pytest.approx(1, abs=0.02), t
    last_two = torch.stack(residuals[-2:]).flatten(1)
    assert float(torch.corrcoef(last_two)[0, 1]) < 0.5
    again = Oracle(process, "x0", truth)
    sample(again, process, draw_noise(truth), sampler="ddpm", steps=10, generator=generator())
    assert all(left[1].equal(right[1]) for left, right in zip(oracle.seen, again.seen, strict=True))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_step_is_one_prediction_from_pure_noise(sampler: Sampler) -> None:
    process, noise = make(), draw_noise(sphere_latents())
    calls: list[int] = []

    def predict(x_t: Tensor, t: Tensor) -> ModelPrediction:
        calls.extend(t.tolist())
        return process.convert("x0", torch.sin(3 * x_t), x_t, t)

    found = sample(predict, process, noise, sampler=sampler, steps=1)
    assert calls == [999] * 3
    torch.testing.assert_close(found, torch.sin(3 * noise), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", STEPS)
def test_ddim_equals_its_closed_form(steps: int) -> None:
    """Song et al. 2021, equation 12 with eta = 0, for a network that is not perfect."""
    process, noise = make("cosine"), draw_noise(sphere_latents())
    timesteps = sampling_timesteps(1000, steps)

    def predict(x_t: Tensor, t: Tensor) -> ModelPrediction:
        return process.convert("x0", torch.tanh(x_t) + 0.1 * t[0] / 1000, x_t, t)

    x = noise.double()
    for t, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        abar = process.alphas_cumprod[t]
        after = torch.tensor(1.0, dtype=torch.float64) if following is None else process.alphas_cumprod[following]
        x0 = torch.tanh(x) + 0.1 * t / 1000
        eps = (x - abar.sqrt() * x0) / (1 - abar).sqrt()
        x = after.sqrt() * x0 + (1 - after).sqrt() * eps
    assert relative_error(sample(predict, process, noise, sampler="ddim", steps=steps), x) < 1e-5


def gaussian_network(process: NoiseProcess, scale: float) -> Predict:
    """The exact denoiser of data Normal(0, c^2), ``E[x0 | x_t] = c^2 alpha x_t / (c^2 alpha^2 + sigma^2)``."""

    def predict(x_t: Tensor, t: Tensor) -> ModelPrediction:
        alpha, sigma = exact_coefficients(process, t)
        x0 = scale**2 * alpha * x_t.double() / (scale**2 * alpha**2 + sigma**2)
        return process.convert("x0", x0.float(), x_t, t)

    return predict


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpm_solver", 2), ("heun", 2)])
def test_samplers_converge_to_the_solution_of_the_equation_at_their_order(sampler: Sampler, order: int) -> None:
    """For Gaussian data the ODE is linear, ``x0 = c x_T / sqrt(c^2 abar_T + 1 - abar_T)``."""
    process, scale = make("edm"), 0.5
    noise = torch.randn(4, 50, 50, generator=generator())
    abar = process.alphas_cumprod[-1]
    exact = scale * noise.double() / (scale**2 * abar + 1 - abar).sqrt()
    network = gaussian_network(process, scale)
    errors = [
        relative_error(sample(network, process, noise, sampler=sampler, steps=steps), exact) for steps in (50, 100)
    ]
    assert errors[1] < 0.03
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


def test_ddpm_samples_have_the_variance_of_its_chain() -> None:
    """Ho et al. 2020, equation 7, by hand: steps are ``x -> gain x + Normal(0, posterior)``; 200 fall 3 % short."""
    process, scale, variance = make(), 0.5, 1.0
    abar = [float(process.alphas_cumprod[t]) for t in sampling_timesteps(1000, 200)]
    for now, after in zip(abar, [*abar[1:], 1.0], strict=True):
        beta = 1 - now / after
        denoised = scale**2 * math.sqrt(now) / (scale**2 * now + 1 - now)
        gain = (math.sqrt(after) * beta * denoised + math.sqrt(1 - beta) * (1 - after)) / (1 - now)
        variance = gain**2 * variance + (1 - after) / (1 - now) * beta
    assert math.sqrt(variance) == pytest.approx(scale, rel=0.05)
    noise = torch.randn(40, 50, 50, generator=torch.Generator().manual_seed(13))
    network = gaussian_network(process, scale)
    found = sample(network, process, noise, sampler="ddpm", steps=200, generator=generator())
    assert float(found.std()) == pytest.approx(math.sqrt(variance), rel=0.01)  # 100,000 numbers: 0.2 %
    assert float(found.mean()) == pytest.approx(0, abs=0.01)


def test_network_evaluations_are_counted() -> None:
    assert [network_evaluations("heun", n) for n in (1, 2, 10)] == [1, 3, 19]
    assert [network_evaluations(name, 10) for name in ("ddpm", "ddim", "dpm_solver")] == [10, 10, 10]


def test_every_step_is_reported() -> None:
    process, truth = make(), sphere_latents()
    seen: list[tuple[int, int]] = []

    def on_step(i: int, t: int, x_t: Tensor, x0: Tensor) -> None:
        assert x_t.shape == truth.shape and relative_error(x0, truth) < 1e-4
        seen.append((i, t))

    sample(Oracle(process, "x0", truth), process, draw_noise(truth), sampler="heun", steps=4, on_step=on_step)
    assert seen == [(0, 999), (1, 749), (2, 749), (3, 499), (4, 499), (5, 249), (6, 249)]


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 7, 10, 50, 1000])
def test_timesteps_are_the_trailing_ones_of_diffusers(steps: int) -> None:
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    assert sampling_timesteps(1000, steps) == scheduler.timesteps.tolist()


def ddim_by_defaults(process: NoiseProcess, oracle: Oracle, noise: Tensor, steps: int, **settings: object) -> Tensor:
    betas = torch.cat((process.alphas_cumprod[:1], process.alphas_cumprod[1:] / process.alphas_cumprod[:-1]))
    scheduler = DDIMScheduler(trained_betas=(1 - betas).tolist(), prediction_type="sample", **settings)
    scheduler.set_timesteps(steps)
    x = noise
    for t in scheduler.timesteps:
        x = scheduler.step(oracle(x, t.expand(len(x))).x0, t, x).prev_sample
    return x


def test_the_defaults_of_diffusers_would_have_spoilt_the_samples() -> None:
    process, truth = make(), sphere_latents()
    noise = draw_noise(truth)

    def error(steps: int, **settings: object) -> float:
        return relative_error(ddim_by_defaults(process, Oracle(process, "x0", truth), noise, steps, **settings), truth)

    chosen: dict[str, object] = {"clip_sample": False, "timestep_spacing": "trailing"}
    assert error(4, **chosen) < 1e-4
    assert error(4, **{**chosen, "clip_sample": True}) > 0.2  # a latent's channels exceed 1
    # "leading" with one step starts, and ends, at t = 0: it never sees noise as noise.
    leading = Oracle(process, "x0", truth)
    ddim_by_defaults(process, leading, noise, 1, clip_sample=False)
    assert leading.seen[0][0] == 0
    # Even as chosen, 7 steps of 1000 end at the first noise level of the table, not at the data.
    assert error(7, **chosen) > 5e-3
    assert relative_error(sample(Oracle(process, "x0", truth), process, noise, sampler="ddim", steps=7), truth) < 1e-6


def test_schedulers_made_from_one_another_would_not_share_a_schedule() -> None:
    ours = DDPMScheduler(beta_start=1e-4, beta_end=0.02)
    inherited = HeunDiscreteScheduler.from_config(DDPMScheduler().config)
    assert abs(float(inherited.betas[-1]) - float(ours.betas[-1])) > 5e-3
    with pytest.raises(NotImplementedError):
        DDIMScheduler(beta_schedule="sigmoid")


def test_bad_requests_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    process, truth = make(), sphere_latents()
    oracle, noise = Oracle(process, "x0", truth), draw_noise(truth)
    with pytest.raises(ValueError, match="sampler 'euler' is not known; choose one of ddpm, ddim, dpm_solver, heun"):
        sample(oracle, process, noise, sampler="euler", steps=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"sampler steps=1001 must lie in 1\.\.1000"):
        sample(oracle, process, noise, sampler="ddim", steps=1001)
    with pytest.raises(ValueError, match="steps=0"):
        network_evaluations("heun", 0)
    with pytest.raises(ValueError, match="pass a generator"):
        sample(oracle, process, noise, sampler="ddpm", steps=2)
    assert oracle.seen == []
    monkeypatch.setitem(sys.modules, "diffusers.schedulers.scheduling_ddim", None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[diffusion\]"'):
        sample(oracle, process, noise, sampler="ddim", steps=1)
