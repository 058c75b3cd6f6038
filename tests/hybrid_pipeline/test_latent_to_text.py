"""From latents to a prefix: PAD says nothing, gradients reach every weight, the KL is the distributions' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from hybrid_pipeline.adapters.latent_to_text import AttentionPooling, LatentAdapterConfig, LatentToTextAdapter
from hybrid_pipeline.adapters.vae_adapter import Collapse, VAEAdapter, beta_at, gaussian_kl, with_free_bits
from hybrid_pipeline.speaker import StubSpeaker

ROWS, PLACES = 4, 6
SPEAKER = StubSpeaker()
MASK = torch.tensor([[True] * 6, [True] * 4 + [False] * 2, [False, True] * 3, [True] + [False] * 5])
TEXTS = ["Erase red.", "Swap red and blue, please.", "Up.", "Paint the top edge green."]


def build(**keys: Any) -> LatentToTextAdapter:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "hidden_size": 8,
        "places": PLACES,
        "text_size": SPEAKER.width,
        "text_scale": SPEAKER.scale,
        "prefix_tokens": 3,
        "bottleneck": 16,
        "pooling_heads": 4,
        "vae_size": 5,
    }
    return LatentToTextAdapter(LatentAdapterConfig(**settings | keys))


def latents() -> Tensor:
    return torch.randn(ROWS, PLACES, 8, generator=torch.Generator().manual_seed(1))


MODES = [{"use_attention_pooling": a, "use_vae_adapter": v} for a in (True, False) for v in (True, False)]


@pytest.mark.parametrize("mode", MODES)
def test_pad_cells_change_nothing(mode: dict[str, bool]) -> None:
    adapter, z = build(**mode), latents()
    expected, kl = adapter(z, MASK)
    assert expected.shape == (ROWS, 3, SPEAKER.width) and (kl is None) != mode["use_vae_adapter"]
    assert torch.equal(adapter(torch.where(MASK.unsqueeze(-1), z, 1e3), MASK)[0], expected)
    changed = z.clone()
    changed[0, 3] += 1
    assert not torch.equal(adapter(changed, MASK)[0][0], expected[0]), "a cell that is there is read"


@pytest.mark.parametrize("mode", MODES)
def test_a_row_without_cells_is_no_nan(mode: dict[str, bool]) -> None:
    adapter, empty = build(**mode), torch.zeros(ROWS, PLACES, dtype=torch.bool)
    prefix, _ = adapter(latents(), empty)
    assert torch.isfinite(prefix).all() and torch.equal(prefix[0], prefix[1])
    prefix.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in adapter.parameters() if p.grad is not None)


def test_attention_heads_weigh_cells_for_themselves() -> None:
    torch.manual_seed(0)
    pool: Any = AttentionPooling(8, 2)
    cells = torch.randn(1, PLACES, 8)
    mask = torch.ones(1, PLACES, dtype=torch.bool)
    with torch.no_grad():
        pool.score[2].weight.mul_(50)
    one = pool(cells, mask)
    scores = pool.score(cells)
    for head, channels in enumerate((slice(0, 4), slice(4, 8))):
        weights = scores[0, :, head].softmax(0)
        assert torch.allclose(one[0, channels], weights @ cells[0, :, channels], atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_come_back_through_the_frozen_language_model(mode: dict[str, bool]) -> None:
    """To every weight of the adapter, and to none of the language model."""
    adapter, said = build(**mode), SPEAKER.tokens(TEXTS)
    noise = torch.randn(ROWS, 5) if mode["use_vae_adapter"] else None
    if adapter.vae is not None:  # zero as they start, which hides what lies before them
        torch.nn.init.normal_(adapter.vae.to_log_variance.weight)
    prefix, kl = adapter(latents(), MASK, noise)
    loss = SPEAKER.losses(prefix, said).sum() + (0 if kl is None else with_free_bits(kl, 0.0))
    loss.backward()
    silent = [name for name, p in adapter.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []
    assert not SPEAKER.embeddings.requires_grad and not SPEAKER.head.requires_grad


def test_a_prefix_is_as_loud_as_words() -> None:
    prefix, _ = build()(latents() * 100, MASK)
    assert prefix.square().mean(-1).sqrt().allclose(torch.tensor(SPEAKER.scale), rtol=1e-3)


def test_kl_is_that_of_the_distributions() -> None:
    draws = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(7, 3, generator=draws), torch.randn(7, 3, generator=draws)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    assert torch.allclose(gaussian_kl(mean, log_variance), expected, atol=1e-6)
    assert gaussian_kl(torch.zeros(1), torch.zeros(1)) == 0


def test_the_sample_has_the_distribution_whose_kl_is_charged() -> None:
    torch.manual_seed(0)
    vae, features = VAEAdapter(4, 3), torch.randn(1, 4)
    with torch.no_grad():
        vae.to_log_variance.bias.copy_(torch.tensor([-1.0, 0.0, 0.7]))  # type: ignore[union-attr]
    samples, kl = vae(features.expand(20000, -1), torch.randn(20000, 3))
    mean, _ = vae(features)
    assert torch.allclose(samples.mean(0), mean[0], atol=0.05)
    found = kl_divergence(Normal(samples.mean(0), samples.std(0)), Normal(0.0, 1.0))
    assert torch.allclose(kl[0], found, atol=0.05)


def test_free_bits_are_charged_a_dimension_and_teach_nothing_below() -> None:
    kl = torch.tensor([[0.0, 0.3, 1.0], [0.1, 0.1, 3.0]], requires_grad=True)
    charge = with_free_bits(kl, 0.5)
    assert charge.item() == pytest.approx(0.5 + 0.5 + 2.0)
    charge.backward()
    assert kl.grad is not None and kl.grad.tolist() == [[0, 0, 0.5], [0, 0, 0.5]]
    assert with_free_bits(kl, 0.0).item() == pytest.approx(0.05 + 0.2 + 2.0), "the mean over rows of the sum"


def test_beta_warms_up() -> None:
    assert [beta_at(step, 0.4, 4) for step in (0, 1, 4, 9)] == pytest.approx([0.0, 0.1, 0.4, 0.4])
    assert beta_at(0, 0.4, 0) == 0.4


def test_collapse_is_counted_by_dimension() -> None:
    found = Collapse(torch.tensor([0.0, 0.049, 0.051, 2.0]))
    assert found.used == 0.5 and found.figures()["kl"] == pytest.approx(2.1)


def test_heads_must_share_the_channels() -> None:
    with pytest.raises(ValidationError, match=r"bottleneck=16 is not a multiple of adapter\.pooling_heads=3"):
        build(pooling_heads=3)
    assert build(pooling_heads=3, use_attention_pooling=False).pool is None
