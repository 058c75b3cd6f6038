"""Latent statistics against torch's own, the affine map, and the sphere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusion.normalisation import STD_FLOOR, LatentNormalizer, LatentStatistics
from tests.diffusion.oracle import sphere_latents

D = 16
TYPES = torch.tensor([0, 1, 0, 0, 1, 0])


def anisotropic(batch: int = 6) -> Tensor:
    """Latents fp32 [batch, 5, D] on the sphere whose channels differ in mean and scale, by type."""
    z = sphere_latents(batch) * torch.linspace(0.2, 1.4, D) + torch.linspace(-1, 1, D)
    z[TYPES == 1] *= torch.linspace(1.3, 0.3, D, dtype=torch.float64)
    return (z / z.square().mean(-1, keepdim=True).sqrt()).float()


def fitted(z: Tensor) -> LatentNormalizer:
    statistics = LatentStatistics(2, D)
    statistics.add(z, TYPES)
    return LatentNormalizer(*statistics.mean_std(), eps=1e-5)


def test_statistics_equal_those_of_all_latents_at_once() -> None:
    z = anisotropic()
    parts = [LatentStatistics(2, D) for _ in range(2)]
    for part, rows in zip(parts, (slice(0, 1), slice(1, 6)), strict=True):
        part.add(z[rows], TYPES[rows])
    both = LatentStatistics.from_sums(parts[0].sums() + parts[1].sums())
    assert both.tokens().tolist() == [20, 10]
    mean, std = both.mean_std()
    assert mean.dtype == std.dtype == torch.float32
    for index in (0, 1):
        tokens = z[index == TYPES].reshape(-1, D).double()
        torch.testing.assert_close(mean[index].double(), tokens.mean(0), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(std[index].double(), tokens.std(0, correction=0), rtol=1e-6, atol=1e-7)


def test_sums_of_bf16_latents_do_not_drift() -> None:
    """A running sum in fp32 or bf16 would stand still long before the ten thousandth latent."""
    z = (torch.full((10, 50, D), 1.5) + torch.randn(10, 50, D) * 2**-6).bfloat16()
    statistics = LatentStatistics(1, D)
    for _ in range(200):
        statistics.add(z, torch.zeros(10, dtype=torch.int64))
    mean, std = statistics.mean_std()
    tokens = z.reshape(-1, D).double()
    torch.testing.assert_close(mean[0].double(), tokens.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(std[0].double(), tokens.std(0, correction=0), rtol=1e-5, atol=0)


def test_a_type_without_latents_is_refused() -> None:
    statistics = LatentStatistics(2, D)
    statistics.add(anisotropic()[:1], TYPES[:1])
    with pytest.raises(ValueError, match="no latent of type 1 was counted"):
        statistics.mean_std()


def test_normalised_latents_have_mean_0_and_variance_1_per_type_and_channel() -> None:
    z = anisotropic()
    normalizer = fitted(z)
    u = normalizer.normalize(z.bfloat16().float(), TYPES)
    assert u.dtype == torch.float32
    for index in (0, 1):
        tokens = u[index == TYPES].reshape(-1, D)
        assert tokens.mean(0).abs().max() < 0.01
        assert (tokens.std(0, correction=0) - 1).abs().max() < 0.01
    torch.testing.assert_close(normalizer.denormalize(normalizer.normalize(z, TYPES), TYPES), z, rtol=1e-5, atol=1e-5)
    swapped = normalizer.normalize(z, 1 - TYPES)
    assert (swapped - normalizer.normalize(z, TYPES)).abs().mean() > 0.1


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_types_per_block_match_the_dimensions_before_the_tokens(shape: tuple[int, ...]) -> None:
    z = anisotropic().view(2, 3, 5, D)
    normalizer = fitted(anisotropic())
    types = torch.tensor([0, 0, 1]).expand(shape)
    u = normalizer.normalize(z, types)
    for row in range(2):
        for block, kind in enumerate((0, 0, 1)):
            alone = normalizer.normalize(z[row, block][None], torch.tensor([kind]))
            assert u[row, block].equal(alone[0])


def test_projection_returns_to_the_sphere_and_leaves_latents_alone() -> None:
    z = anisotropic()
    normalizer = fitted(z)
    u = normalizer.normalize(z, TYPES)
    torch.testing.assert_close(normalizer.project(u, TYPES), u, rtol=0, atol=1e-4)
    moved = u + 0.5 * torch.randn(u.shape, generator=torch.Generator().manual_seed(1))
    back = normalizer.denormalize(normalizer.project(moved, TYPES), TYPES)
    rms = back.square().mean(-1).sqrt()
    torch.testing.assert_close(rms, torch.ones_like(rms), rtol=0, atol=2e-5)
    assert normalizer.denormalize(moved, TYPES).square().mean(-1).sqrt().sub(1).abs().max() > 0.05
    direction = torch.nn.functional.cosine_similarity(back, normalizer.denormalize(moved, TYPES), dim=-1)
    assert direction.min() > 0.9999


def test_a_dead_channel_is_not_blown_up() -> None:
    mean, std = torch.zeros(1, D), torch.ones(1, D)
    std[0, 3] = 1e-6
    normalizer = LatentNormalizer(mean, std)
    assert float(normalizer.std[0, 3]) == pytest.approx(STD_FLOOR)
    rounding = torch.full((1, 5, D), 4e-3)
    assert normalizer.normalize(rounding, torch.tensor([0])).abs().max() <= 0.4 + 1e-6


def test_statistics_travel_with_the_state_and_are_told_apart_by_digest() -> None:
    z = anisotropic()
    normalizer = fitted(z)
    other = LatentNormalizer.identity(2, D)
    assert other.normalize(z, TYPES).equal(z)
    assert other.digest() != normalizer.digest()
    other.load_state_dict(normalizer.state_dict())
    assert other.digest() == normalizer.digest() and len(other.digest()) == 64
    other.set_statistics(normalizer.mean, normalizer.std)
    assert other.digest() == normalizer.digest()
    other.mean[0, 0] += 1e-6
    assert other.digest() != normalizer.digest()
    assert LatentNormalizer.identity(2, D, eps=1e-6).digest() != LatentNormalizer.identity(2, D).digest()


def test_statistics_that_cannot_be_meant_are_refused() -> None:
    normalizer = LatentNormalizer.identity(2, D)
    with pytest.raises(ValueError, match=r"mean has shape \[2, 8\]; expected \[types, channels\] \[2, 16\]"):
        normalizer.set_statistics(torch.zeros(2, 8), torch.ones(2, D))
    with pytest.raises(ValueError, match="std of the latents has values that are not finite"):
        normalizer.set_statistics(torch.zeros(2, D), torch.full((2, D), float("inf")))
