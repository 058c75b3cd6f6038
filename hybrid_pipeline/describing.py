"""One training step of an adapter from latents to text, and what a run of them carries from step to step.

The loss of a row is that of its description in nats, the sum over its tokens, plus β times the KL of the bottleneck
where there is one (see `hybrid_pipeline.adapters.vae_adapter`): both in nats a description. β's warm-up is counted from
the run's first step, unlike the learning rate, which starts anew with the language model's steps.

A run's first steps do without the language model's body. They ask the prefix for the words of the description in any
order: every token of the prefix is a distribution over the words of all training sentences, by how near it lies to the
model's own embeddings of them, the prefix is their mixture, and the loss is that of the description's tokens under it.
Reading latents takes tens of thousands of rows to learn, such a step costs a fiftieth of one through the language
model, and a prefix that lies near words is one that the model can already read.

    trainer = Trainer(teller, listener, config)
    metrics = trainer.train_step()
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from datasets.common import InputError
from hybrid_pipeline.adapters.latent_to_text import LatentAdapterConfig, LatentToTextAdapter
from hybrid_pipeline.adapters.vae_adapter import beta_at, with_free_bits
from hybrid_pipeline.describe_schema import DescribeConfig
from hybrid_pipeline.descriptions import Listener, rows_to_train, sentence_table
from hybrid_pipeline.latents import check_level, level_lengths
from hybrid_pipeline.speaker import Said, Speaker
from hybrid_pipeline.teller import Teller
from training.checkpoint import Checkpoint
from training.distributed import FlatGradients
from training.ema import EMA, warmed_up_rate
from training.guard import assert_finite
from training.optim import build_optimizers, set_learning_rates
from training.slot_noise import SlotNoise
from training.state import load_optimizer_tensors, optimizer_tensors

GROUPS = ("model", "optim", "ema")
NOISE_STREAM = 334  # tells these draws from all others
SHARPNESS = 30.0  # of the words' softmax: a cosine of 1 is so many nats


def build_teller(config: DescribeConfig, listener: Listener, speaker: Speaker) -> Teller:
    """Adapter and language model; the adapter's initial weights depend on the seed alone. `InputError` for bad keys."""
    model = listener.model.model
    check_level(model, config.adapter.level)
    options = config.adapter
    own = {key: value for key, value in options.model_dump().items() if key in LatentAdapterConfig.model_fields}
    try:
        settings = LatentAdapterConfig(
            hidden_size=model.config.hidden_size,
            places=level_lengths(model)[options.level],
            text_size=speaker.width,
            text_scale=speaker.scale,
            **own,
        )
    except ValidationError as error:
        raise InputError(
            f"adapter: {'; '.join(part['msg'].removeprefix('Value error, ') for part in error.errors())}"
        ) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        adapter = LatentToTextAdapter(settings)
    sentences = speaker.tokens(listener.data.sentences[1:])
    return Teller(adapter.to(listener.device), speaker, sentences, options.level, config.latents == "constant")


class Words:
    """The tokens of the training sentences, as directions: the language model's embeddings of them about their mean."""

    def __init__(self, speaker: Speaker, said: Said):
        self.tokens = said.ids[said.mask].unique()
        vectors = speaker.embeddings[self.tokens].float()
        self.mean = vectors.mean(0)
        self.directions = F.normalize(vectors - self.mean, dim=1)

    def losses(self, prefix: Tensor, said: Said) -> Tensor:
        """Nats of each description's tokens in any order, fp32 [batch]: a sum over its tokens."""
        likeness = F.normalize(prefix - self.mean, dim=-1) @ self.directions.T
        nats = math.log(prefix.shape[1]) - (SHARPNESS * likeness).log_softmax(-1).logsumexp(1)
        places = torch.searchsorted(self.tokens, said.ids.contiguous()).clamp_max(len(self.tokens) - 1)
        return (nats.gather(1, places) * said.mask).sum(1)


class Trainer:
    """The state of a run. `step`: updates made."""

    def __init__(self, teller: Teller, listener: Listener, config: DescribeConfig):
        self.teller, self.config = teller, config
        self.step = 0
        self.adapter = teller.adapter
        self.gradients = FlatGradients(self.adapter.parameters())
        self.optimizers = build_optimizers(config, self.adapter)
        self.ema = EMA(dict(self.adapter.named_parameters()), config.ema_rate)
        self.words = Words(teller.speaker, teller.said(sentence_table(held_out=False).reshape(-1)))
        self.rows = rows_to_train(listener.data, config.latent_rows, config.seed)
        self.latents, self.mask = listener.latents(self.rows, teller.level)
        self._noise = SlotNoise(config.seed, NOISE_STREAM, listener.device)

    @property
    def asks_for_words(self) -> bool:
        """Whether the next step does without the language model's body."""
        return self.step < self.config.word_steps

    def train_step(self) -> dict[str, Tensor]:
        """One update; returns sums over the rows, and of the tokens as `count`."""
        config, adapter = self.config, self.config.adapter
        batch_size = config.word_batch_size if self.asks_for_words else config.global_batch_size
        prefix, kl, said = self._rows(self.step, range(batch_size))
        score = self.words.losses if self.asks_for_words else self.teller.speaker.losses
        nats = score(prefix, said).sum()
        loss = nats / batch_size
        if config.word_weight > 0 and not self.asks_for_words:
            prefix, _, words = self._rows(self.step + 2**32, range(config.word_batch_size))
            loss = loss + config.word_weight * self.words.losses(prefix, words).mean()
        metrics = {"lm_nats": nats.detach()}
        if kl is not None:
            beta = beta_at(self.step, adapter.vae_beta, adapter.vae_warmup_steps)
            loss = loss + beta * with_free_bits(kl, adapter.vae_free_bits)
            metrics["kl_loss"] = kl.detach().sum()
        loss.backward()
        norm = self._update(loss.detach())
        return metrics | {
            "loss": loss.detach() * batch_size,
            "rows": torch.tensor(float(batch_size)),
            "count": said.mask.sum().float(),
            "grad_norm": norm,
        }

    def _rows(self, draw: int, slots: range) -> tuple[Tensor, Tensor | None, Said]:
        """Prefixes of rows drawn for these slots, their KL, and what they should say."""
        chosen, wording = self.rows.other_wordings(self.config.seed, draw, len(slots))
        options = self.config.adapter
        noise = self._noise(draw, slots, [options.vae_size]) if options.use_vae_adapter else None
        prefix, kl = self.teller.prefix(self.latents[chosen], self.mask[chosen], noise)
        return prefix, kl, self.teller.said(self.rows.sentences[self.rows.instance[chosen], wording])

    def _update(self, loss: Tensor) -> Tensor:
        """Clip, step and average; the learning rate starts anew with the language model's steps."""
        config, norm = self.config, self.gradients.norm()
        assert_finite(torch.stack((norm, loss)), self.step + 1)
        if config.optim.grad_clip is not None:
            for flat in self.gradients.tensors:
                flat.mul_((config.optim.grad_clip / (norm + 1e-6)).clamp_max(1.0))
        words = self.asks_for_words
        self.step += 1
        set_learning_rates(
            self.optimizers,
            self.step if words else self.step - config.word_steps,
            warmup_steps=config.lr_warmup_steps,
            total_steps=config.word_steps if words else config.max_steps - config.word_steps,
            min_ratio=config.lr_min_ratio,
        )
        for optimizer in self.optimizers:
            optimizer.step()
        self.gradients.zero()
        self.ema.update(warmed_up_rate(config.ema_rate, self.step))
        return norm

    @property
    def learning_rate(self) -> float:
        return self.optimizers[0].param_groups[0]["lr"]

    def replicated(self) -> dict[str, dict[str, Tensor]]:
        """Everything that a checkpoint holds."""
        optim = optimizer_tensors(self.optimizers, self.adapter)
        return {"model": dict(self.adapter.state_dict()), "optim": optim, "ema": self.ema.shadow}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint read with `GROUPS`."""
        self.step = checkpoint.step
        groups: dict[str, Any] = checkpoint.groups
        self.adapter.load_state_dict(groups["model"])
        load_optimizer_tensors(self.optimizers, self.adapter, groups["optim"])
        self.ema.load(groups["ema"])
