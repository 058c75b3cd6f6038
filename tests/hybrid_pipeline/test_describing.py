"""What an adapter from latents to text is trained on, with which loss, and how its steps are scaled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hybrid_pipeline.adapters.vae_adapter import with_free_bits
from hybrid_pipeline.describe_schema import DescribeConfig
from hybrid_pipeline.describing import Trainer, build_teller
from hybrid_pipeline.descriptions import Listener, rows_to_train, sentence_table
from hybrid_pipeline.speaker import Said, StubSpeaker
from hybrid_pipeline.teller import Teller
from hybrid_pipeline.telling import evaluate
from tests.hybrid_pipeline.describe_runs import make
from training.optim import learning_rate


def trainer_of(listener: Listener, *more: str) -> Trainer:
    config: DescribeConfig = make(listener.path, *more)
    return Trainer(build_teller(config, listener, StubSpeaker()), listener, config)


class Seen:
    """What a teller was asked for, as it went on as usual."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.numbers: list[np.ndarray] = []
        self.read: list[tuple[Tensor, Tensor | None]] = []
        said, prefix = Teller.said, Teller.prefix

        def seen_said(own: Teller, numbers: np.ndarray) -> Said:
            self.numbers.append(numbers)
            return said(own, numbers)

        def seen_prefix(own: Teller, z: Tensor, mask: Tensor, noise: Tensor | None = None) -> Any:
            self.read.append((z, noise))
            return prefix(own, z, mask, noise)

        monkeypatch.setattr(Teller, "said", seen_said)
        monkeypatch.setattr(Teller, "prefix", seen_prefix)


@pytest.mark.parametrize("step", [0, 2])
def test_a_row_is_trained_to_say_another_sentence_than_it_was_told(
    listener: Listener,
    step: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the steps for words, in those of the language model and in the words beside them."""
    trainer = trainer_of(listener, "word_weight=1.0", "word_batch_size=32", "global_batch_size=32")
    trainer.step = step
    seen = Seen(monkeypatch)
    trainer.train_step()
    draws = [step] if step == 0 else [step, step + 2**32]
    assert len(seen.numbers) == len(seen.read) == len(draws)
    for draw, numbers, (z, _) in zip(draws, seen.numbers, seen.read, strict=True):
        chosen, wording = trainer.rows.other_wordings(0, draw, 32)
        assert torch.equal(z, trainer.latents[chosen])
        assert (numbers != trainer.rows.told[chosen]).all()
        assert np.array_equal(numbers, sentence_table(False)[trainer.rows.instance[chosen], wording])


def test_latents_are_of_rows_that_were_told_their_sentence(listener: Listener) -> None:
    trainer = trainer_of(listener)
    assert torch.equal(trainer.latents, listener.latents(rows_to_train(listener.data, 32, 0))[0])


def test_words_are_those_of_training_sentences(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(monkeypatch)
    trainer_of(listener)
    (numbers,) = seen.numbers
    assert np.array_equal(numbers, sentence_table(False).ravel())


@pytest.mark.parametrize("free_bits", [0.0, 50.0])
def test_the_loss_is_that_of_the_text_and_the_priced_bottleneck(
    listener: Listener,
    free_bits: float,
) -> None:
    vae = ["adapter.use_vae_adapter=true", "adapter.vae_beta=0.5", "adapter.vae_warmup_steps=4"]
    trainer = trainer_of(listener, *vae, f"adapter.vae_free_bits={free_bits}")
    for step in range(4):
        rows = 8 if step < 2 else 4
        with torch.no_grad():
            _, kl, _ = trainer._rows(step, range(rows))
        assert kl is not None
        metrics = trainer.train_step()
        assert metrics["kl_loss"].item() == pytest.approx(kl.sum().item(), rel=1e-5)
        charge = float(metrics["loss"] - metrics["lm_nats"]) / rows
        # Counted from the first step on, those for words included.
        assert charge == pytest.approx(0.5 * step / 4 * with_free_bits(kl, free_bits).item(), rel=1e-3, abs=1e-4)
        assert free_bits == 0 or step == 0 or charge == pytest.approx(0.5 * step / 4 * 4 * 50)


def test_the_price_reaches_the_weights(listener: Listener) -> None:
    """Of one step alike but for its price, another gradient comes."""

    def norm(beta: float) -> float:
        vae = ["adapter.use_vae_adapter=true", f"adapter.vae_beta={beta}", "adapter.vae_warmup_steps=0"]
        return trainer_of(listener, *vae).train_step()["grad_norm"].item()

    assert norm(0.0) != pytest.approx(norm(100.0), rel=0.01)


def test_a_bottleneck_is_sampled_in_training_and_not_in_evaluation(
    listener: Listener,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = trainer_of(listener, "adapter.use_vae_adapter=true", "global_batch_size=32", "identify_rows=2")
    chosen, _ = trainer.rows.other_wordings(0, 2, 32)
    with torch.no_grad():
        sampled, again, other = (trainer._rows(draw, range(32))[0] for draw in (2, 2, 3))
        mean, _ = trainer.teller.prefix(trainer.latents[chosen], trainer.mask[chosen])
    assert torch.equal(sampled, again) and not torch.equal(sampled, other)
    assert ((sampled - mean).abs().amax((1, 2)) > 0.01).all()
    seen = Seen(monkeypatch)
    trainer.step = 2
    trainer.train_step()
    (((_, noise)),) = seen.read
    assert noise is not None and noise.shape == (32, 4) and 0.7 < noise.std() < 1.3
    seen.read.clear()
    evaluate(trainer.teller, listener, trainer.config)
    assert len(seen.read) == 7 and all(noise is None for _, noise in seen.read)


def test_a_gradient_is_clipped(listener: Listener) -> None:
    """Seen by the optimiser: AdamW hardly shows by its steps how long a gradient was."""
    for clip, expected in (("0.001", 0.001), ("1e9", None), ("null", None)):
        trainer = trainer_of(listener, f"optim.grad_clip={clip}")
        (optimizer,) = trainer.optimizers
        norms: list[float] = []
        optimizer.step = lambda own=trainer, norms=norms: norms.append(own.gradients.norm().item())  # type: ignore
        whole = trainer.train_step()["grad_norm"].item()
        assert whole > 0.01 and norms == [pytest.approx(expected or whole, rel=1e-2 if expected else 1e-6)]


def test_the_learning_rate_starts_anew_with_the_language_model(listener: Listener) -> None:
    trainer = trainer_of(listener, "word_steps=3", "max_steps=8", "lr_warmup_steps=2", "lr=1e-2", "lr_min_ratio=0.1")
    found = []
    for _ in range(8):
        trainer.train_step()
        found.append(trainer.learning_rate)
    expected = [
        learning_rate(step, base=1e-2, warmup_steps=2, total_steps=total, min_ratio=0.1)
        for total in (3, 5)
        for step in range(1, total + 1)
    ]
    assert found == pytest.approx(expected) and found[3] == found[0] == pytest.approx(5e-3)
