"""The forward process, the three kinds of prediction, loss weights and the draw of timesteps."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from diffusion.process import (
    PREDICTIONS,
    NoiseProcess,
    Prediction,
    lognormal_timesteps,
    loss_weight,
    stratified_timesteps,
    stratify,
)
from diffusion.schedule import SCHEDULES, Schedule, alphas_cumprod
from tests.diffusion.oracle import relative_error, sphere_latents

EVERY_STEP = torch.arange(1000)


def make(schedule: Schedule = "linear") -> NoiseProcess:
    return NoiseProcess(alphas_cumprod(schedule, 1000))


def test_noise_is_added_as_in_ddpm() -> None:
    process, x0 = make(), sphere_latents()
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0, 500, 999])
    x_t = process.add_noise(x0.bfloat16(), noise.bfloat16(), t)
    assert x_t.dtype == torch.float32
    for row in range(3):
        abar = float(process.alphas_cumprod[t[row]])
        expected = math.sqrt(abar) * x0[row].bfloat16().double() + math.sqrt(1 - abar) * noise[row].bfloat16().double()
        torch.testing.assert_close(x_t[row].double(), expected, rtol=0, atol=1e-6)
        assert float(process.snr(t)[row]) == pytest.approx(abar / (1 - abar), rel=1e-5)


def test_buffers_keep_the_digits_of_a_small_sigma_and_are_not_saved() -> None:
    process = make("edm")
    assert float(process.sigma[0] / process.alpha[0]) == pytest.approx(0.002, rel=1e-6)
    assert process.alphas_cumprod.dtype == torch.float64
    assert process.state_dict() == {} and process.num_steps == 1000


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_conversions_give_back_what_was_mixed_at_every_timestep(schedule: Schedule, kind: Prediction) -> None:
    process = make(schedule)
    generator = torch.Generator().manual_seed(2)
    x0, noise = torch.randn(2, 1000, 64, generator=generator)
    x_t = process.add_noise(x0, noise, EVERY_STEP)
    output = process.target(kind, x0, noise, EVERY_STEP)
    found = process.convert(kind, output, x_t, EVERY_STEP)
    v = process.target("v", x0, noise, EVERY_STEP)

    def worst(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return (left - right).norm(dim=1) / right.norm(dim=1)

    # eps holds x0 only through x_t - sigma eps, so that the rounding of both, 6e-8, is divided by alpha.
    allowed = torch.full((1000,), 1e-4)
    if kind == "eps":
        allowed = allowed.maximum(6e-8 / process.alpha)
        assert schedule == "cosine" or allowed.max() < 1.2e-4
    assert (worst(found.x0, x0) < allowed).all()
    assert (worst(found.eps, noise) < 1e-4).all()
    assert (worst(found.v, v) < allowed).all()
    for other in PREDICTIONS:  # and back again through another kind
        again = process.convert(other, getattr(found, other), x_t, EVERY_STEP)  # type: ignore[arg-type]
        slack = 6e-8 / process.alpha if other == "eps" else torch.zeros(1000)
        assert (worst(again.x0, found.x0) < 1e-4 + slack).all(), other
        assert (worst(again.eps, found.eps) < 1e-4).all(), other


def test_an_error_of_eps_is_divided_by_alpha_and_an_error_of_x0_is_not() -> None:
    """Why the network predicts x0: a 1 % error of eps from pure noise is a 157 % error of the latent."""
    process, x0 = make(), sphere_latents()
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    error = torch.randn(x0.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    error *= 0.01 * x0.norm() / error.norm()
    t = torch.full((3,), 999)
    x_t = process.add_noise(x0, noise, t)
    by_kind = {kind: process.convert(kind, process.target(kind, x0, noise, t) + error, x_t, t) for kind in PREDICTIONS}  # type: ignore[arg-type]
    assert relative_error(by_kind["eps"].x0, x0) == pytest.approx(1.574, rel=1e-2)
    assert relative_error(by_kind["x0"].x0, x0) == pytest.approx(0.01, rel=1e-3)
    assert relative_error(by_kind["v"].x0, x0) == pytest.approx(0.01, rel=1e-3)


def test_gradients_flow_through_conversions() -> None:
    process, x0 = make(), sphere_latents().float()
    for kind in PREDICTIONS:
        output = torch.zeros_like(x0, requires_grad=True)
        process.convert(kind, output, x0, torch.tensor([0, 500, 999])).x0.sum().backward()  # type: ignore[arg-type]
        assert output.grad is not None and (output.grad != 0).all()


def test_tables_that_are_no_process_are_refused() -> None:
    for table in ([0.9, 0.95], [1.0, 0.5], [0.5, 0.0], [0.5, float("nan")]):
        with pytest.raises(ValueError, match="decrease strictly"):
            NoiseProcess(torch.tensor(table))
    with pytest.raises(ValueError, match=r"shape \[\]"):
        NoiseProcess(torch.tensor(0.5))
    with pytest.raises(ValueError, match="prediction='score' is not known; choose one of eps, x0, v"):
        make().convert("score", torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]))  # type: ignore[arg-type]


def test_weights_are_the_published_ones() -> None:
    snr = torch.tensor([0.0, 1e-9, 0.5, 5.0, 20.0, 1e4])
    expected = {
        "eps": [1, 1, 1, 1, 0.25, 5e-4],
        "x0": [0, 1e-9, 0.5, 5, 5, 5],
        "v": [0, 1e-9, 1 / 3, 5 / 6, 5 / 21, 5 / 10001],
    }
    for kind, values in expected.items():
        torch.testing.assert_close(loss_weight(kind, snr, "min_snr"), torch.tensor(values), rtol=1e-5, atol=0)  # type: ignore[arg-type]
        assert loss_weight(kind, snr, "uniform").tolist() == [1] * 6  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weighting='p2' is not known"):
        loss_weight("x0", snr, "p2")  # type: ignore[arg-type]


@pytest.mark.parametrize("weighting", ["snr", "min_snr"])
def test_one_weighting_means_the_same_loss_for_every_kind(weighting: str) -> None:
    """The weighted squared errors of one prediction, seen as eps, as x0 and as v, are equal."""
    process, x0 = make(), torch.randn(1000, 32, generator=torch.Generator().manual_seed(5))
    noise, wrong = torch.randn(2, 1000, 32, generator=torch.Generator().manual_seed(6))
    x_t = process.add_noise(x0, noise, EVERY_STEP)
    predicted = process.convert("v", wrong, x_t, EVERY_STEP)
    losses = []
    for kind in PREDICTIONS:
        error = getattr(predicted, kind) - process.target(kind, x0, noise, EVERY_STEP)  # type: ignore[arg-type]
        weight = loss_weight(kind, process.snr(EVERY_STEP), weighting)  # type: ignore[arg-type]
        losses.append(weight * error.square().mean(1))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(losses[1], losses[2], rtol=1e-3, atol=1e-6)


def test_stratified_timesteps_fall_one_in_each_interval_whoever_draws_them() -> None:
    uniform = torch.rand(8, generator=torch.Generator().manual_seed(7))
    whole = stratified_timesteps(uniform, 1000)
    assert whole.dtype == torch.int64
    assert (whole // 125).tolist() == list(range(8))
    halves = [stratified_timesteps(uniform[first : first + 4], 1000, first, 8) for first in (0, 4)]
    assert torch.cat(halves).equal(whole)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(8))
    shuffled = stratified_timesteps(uniform, 1000, order=order)
    assert (shuffled // 125).equal(order)
    second = stratified_timesteps(uniform[4:], 1000, 4, 8, order)
    assert second.equal(shuffled[4:])
    edges = torch.tensor([0.0, 1 - 2**-24])
    assert stratified_timesteps(edges, 10).tolist() == [0, 9]
    assert int(stratified_timesteps(torch.tensor([1.0]), 10)) == 9  # rounded up by whoever drew it


def test_stratified_timesteps_are_uniform() -> None:
    generator = torch.Generator().manual_seed(9)
    counts: Counter[int] = Counter()
    for _ in range(500):
        counts.update(stratified_timesteps(torch.rand(7, generator=generator), 10).tolist())
    assert all(abs(counts[t] - 350) < 60 for t in range(10)), counts


def test_lognormal_timesteps_follow_edm() -> None:
    process = make("edm")
    uniform = stratify(torch.rand(20000, generator=torch.Generator().manual_seed(10)))
    t = lognormal_timesteps(uniform, process)
    assert t.dtype == torch.int64
    log_level = (process.sigma / process.alpha)[t].double().log()
    assert float(log_level.mean()) == pytest.approx(-1.2, abs=0.01)
    assert float(log_level.std()) == pytest.approx(1.2, abs=0.01)
    inside = float((log_level.abs() < 0.5).double().mean())
    normal = torch.distributions.Normal(-1.2, 1.2)
    expected = float(normal.cdf(torch.tensor(0.5)) - normal.cdf(torch.tensor(-0.5)))
    assert inside == pytest.approx(expected, abs=0.01)
    assert lognormal_timesteps(torch.tensor([0.0]), process, -50).tolist() == [0]
    assert lognormal_timesteps(torch.tensor([0.5]), process, 50).tolist() == [999]
    # From low to high: the ends of u are the ends of the table.
    assert lognormal_timesteps(torch.tensor([0.1, 0.5, 0.9]), process).diff().min() > 0
