"""Noise schedules against their formulas, written out once more, and against each other."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from diffusion.schedule import MAX_BETA, SCHEDULES, Schedule, alphas_cumprod, check_terminal_snr, terminal_snr


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [10, 97, 1000])
def test_tables_decrease_inside_the_unit_interval(schedule: Schedule, steps: int) -> None:
    abar = alphas_cumprod(schedule, steps)
    assert abar.dtype == torch.float64 and abar.shape == (steps,)
    assert (abar > 0).all() and (abar < 1).all() and (abar.diff() < 0).all()


def test_linear_is_the_standard_ddpm_schedule() -> None:
    abar = alphas_cumprod("linear", 1000)
    product, by_hand = 1.0, []
    for t in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * t / 999)
        by_hand.append(product)
    torch.testing.assert_close(abar, torch.tensor(by_hand, dtype=torch.float64), rtol=1e-10, atol=0)
    reference = DDPMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    torch.testing.assert_close(abar.float(), reference.alphas_cumprod, rtol=1e-4, atol=0)
    assert terminal_snr(abar) == pytest.approx(4.036e-5, rel=1e-3)


def test_cosine_follows_its_curve_until_beta_is_clipped() -> None:
    abar = alphas_cumprod("cosine", 1000)

    def curve(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in (0, 1, 250, 500, 998):
        assert float(abar[t]) == pytest.approx(curve((t + 1) / 1000) / curve(0), rel=1e-9)
    assert float(abar[-1] / abar[-2]) == pytest.approx(1 - MAX_BETA)
    assert terminal_snr(abar) == pytest.approx(2.43e-9, rel=1e-2)


def test_sigmoid_follows_its_curve() -> None:
    abar = alphas_cumprod("sigmoid", 1000)

    def falling(u: float) -> float:
        return 1 / (1 + math.exp(u * 6 - 3))

    for t in (0, 1, 250, 499, 998):
        expected = (falling((t + 1) / 1000) - falling(1)) / (falling(0) - falling(1))
        assert float(abar[t]) == pytest.approx(expected, rel=1e-8)
    assert float(abar[499]) == pytest.approx(0.5)  # symmetric about the middle


def test_edm_levels_are_those_of_the_paper() -> None:
    abar = alphas_cumprod("edm", 18)
    levels = ((1 - abar) / abar).sqrt()
    for i in range(18):  # the paper counts down from sigma_max
        expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        assert float(levels[17 - i]) == pytest.approx(expected, rel=1e-6)
    # One step alone is the noisiest level, which is where a sampler starts.
    assert terminal_snr(alphas_cumprod("edm", 1)) == pytest.approx(1 / 80**2)


@pytest.mark.parametrize("index", [0, 1, 300, 700, 999])
def test_edm_preconditioning_is_v_prediction(index: int) -> None:
    """Karras et al. 2022, table 1, with sigma_data = 1, beside x0 = alpha x_t - sigma v."""
    abar = alphas_cumprod("edm", 1000)
    alpha, sigma = abar[index].sqrt(), (1 - abar[index]).sqrt()
    level, data = sigma / alpha, 1.0
    c_skip = data**2 / (level**2 + data**2)
    c_out = level * data / (level**2 + data**2).sqrt()
    c_in = 1 / (level**2 + data**2).sqrt()
    generator = torch.Generator().manual_seed(index)
    x0, noise, output = torch.randn(3, 1000, dtype=torch.float64, generator=generator)
    noisy = x0 + level * noise  # as EDM adds noise
    x_t = alpha * x0 + sigma * noise
    torch.testing.assert_close(c_in * noisy, x_t, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(c_skip * noisy + c_out * output, alpha * x_t - sigma * -output, rtol=1e-9, atol=1e-12)
    # The network's target is -v, and EDM's loss weight makes its squared error count once.
    target = (x0 - c_skip * noisy) / c_out
    torch.testing.assert_close(target, -(alpha * noise - sigma * x0), rtol=1e-6, atol=1e-9)
    assert float((level**2 + data**2) / (level * data) ** 2 * c_out**2) == pytest.approx(1)


def test_a_schedule_that_does_not_end_in_noise_is_refused() -> None:
    for schedule in SCHEDULES:
        check_terminal_snr(alphas_cumprod(schedule, 1000))  # type: ignore[arg-type]
    short = alphas_cumprod("linear", 30)
    with pytest.raises(
        ValueError, match=r"30 steps ends at SNR 2\.\d, not in noise .*raise noise\.steps or noise\.beta_end"
    ):
        check_terminal_snr(short)
    check_terminal_snr(short, limit=10)
    with pytest.raises(ValueError, match="SNR"):
        check_terminal_snr(alphas_cumprod("linear", 1000, beta_end=0.01))


def test_settings_that_give_no_schedule_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'quadratic' is not known; choose one of linear, cosine, sigmoid, edm"):
        alphas_cumprod("quadratic", 10)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"noise\.steps=0"):
        alphas_cumprod("linear", 0)
    with pytest.raises(ValueError, match=r"beta_start=0\.1 and beta_end=0\.02"):
        alphas_cumprod("linear", 10, beta_start=0.1)
    with pytest.raises(ValueError, match="sigma_min=90"):
        alphas_cumprod("edm", 10, sigma_min=90)
    with pytest.raises(ValueError, match="sigmoid_start=4"):
        alphas_cumprod("sigmoid", 10, sigmoid_start=4)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shift", [0.5, 3.5])
def test_a_shift_divides_the_signal_to_noise_ratio_by_its_square(schedule: Schedule, shift: float) -> None:
    plain, shifted = (alphas_cumprod(schedule, 1000, shift=factor) for factor in (1.0, shift))
    assert torch.equal(plain, alphas_cumprod(schedule, 1000))
    ratio = (plain / (1 - plain)) / (shifted / (1 - shifted))
    torch.testing.assert_close(ratio, torch.full_like(ratio, shift**2), rtol=1e-9, atol=0)
    assert (shifted.diff() < 0).all()
    assert terminal_snr(shifted) == pytest.approx(terminal_snr(plain) / shift**2)


def test_a_shift_that_leaves_no_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="shift=0 must be above 0"):
        alphas_cumprod("linear", 1000, shift=0)
    with pytest.raises(ValueError, match="ends at SNR inf"):
        check_terminal_snr(alphas_cumprod("edm", 1000, shift=1e-12))
