"""A head as a function from conditions to latents: what evaluations and students call.

sampler = HeadSampler(head, "layer", "ddim", steps=1, device=dist.device)
z_L = sampler((z_L, z_H, x), types, key)[:, 0]            # raw latents, as the teacher's
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor

from datasets.common import InputError
from diffusion.process import ModelPrediction
from diffusion.sampling import OnStep, Sampler, network_evaluations, sample
from models.diffusion_blocks import DiffusionHead
from models.layers import rms_norm
from models.student import HeadRows
from training.teacher import Teacher

# The pool of noise that rows take theirs from: numbers in it (256 MiB), and the fewest and most members.
POOL_NUMBERS, POOL_LEAST, POOL_MOST = 2**26, 4, 1024
CONDITIONS = 3

_Piece = tuple[tuple[Tensor, ...], Tensor | None, Tensor]

# Latent positions that one call of the network sees.
TOKENS_ON_CUDA, TOKENS_ELSEWHERE = 2**18, 2**13


def rows_at_once(rows: HeadRows, blocks: int, length: int, device: torch.device) -> int:
    """Rows of a head that go through the network together: as many as fill a GPU, not its memory."""
    tokens = length if rows == "layer" else (CONDITIONS + blocks) * length
    return max(1, (TOKENS_ON_CUDA if device.type == "cuda" else TOKENS_ELSEWHERE) // tokens)


class HeadSampler:
    """Draws raw latents fp32 [b, n, P, D], each token of RMS 1, from a head; a `models.student.Sample`.

    The noise of a row is a function of (`seed`, the row's key): neither batching nor the number of processes changes
    what is drawn (except by the ddpm sampler, whose noise between steps is drawn batch by batch). A regression head is
    called once. `InputError` for a sampler that does not suit the head's noise process.
    """

    def __init__(
        self, head: DiffusionHead, rows: HeadRows, sampler: str, steps: int, *, device: torch.device, seed: int = 0
    ):
        self.head, self.rows, self.device = head, rows, device
        self.regression = head.config.prediction == "regression"
        self.sampler, self.steps = cast(Sampler, sampler), 1 if self.regression else steps
        self.process: Any = head.process
        self.normalizer: Any = head.normalizer
        self.length: int = head.config.length
        self.blocks: int = 1 if rows == "layer" else head.config.target_blocks
        self.rows_at_once = rows_at_once(rows, self.blocks, self.length, device)
        self.padded = False
        self._generator = torch.Generator(device).manual_seed(seed)
        size = self.blocks * self.length * head.config.latent_size
        # A power of two, see `models.student.KEY_STRIDE`.
        members = min(POOL_MOST, max(POOL_LEAST, 2 ** (max(1, POOL_NUMBERS // size).bit_length() - 1)))
        self._pool = torch.randn(members, size, generator=self._generator, device=device)
        self._pool = self._pool.view(members, self.blocks * self.length, -1)
        self._check()

    @property
    def nfe(self) -> int:
        """Network evaluations of a sample."""
        return network_evaluations(self.sampler, self.steps)

    def __call__(self, conditions: tuple[Tensor, ...], types: Tensor | None, key: Tensor) -> Tensor:
        parts = [
            self.denormalize(self.draw(own, kinds, keys), self.block_types(own, kinds))
            for own, kinds, keys in self._pieces(conditions, types, key)
        ]
        latents = parts[0] if len(parts) == 1 else torch.cat(parts)
        # Without `sphere`, x_0 from an eps of high noise is a hundred times too long, which would be all that shows.
        return latents if self.head.config.sphere else rms_norm(latents, self.head.config.rms_norm_eps)

    def fit(self, batch: int, padded: bool) -> None:
        """Split batches of `batch` rows evenly over calls of the network; `padded`: all calls have that many rows,
        because a compiled network would be compiled again for others."""
        calls = -(-batch // self.rows_at_once)
        self.rows_at_once, self.padded = -(-batch // calls), padded

    def draw(
        self, conditions: tuple[Tensor, ...], types: Tensor | None, key: Tensor, on_step: OnStep | None = None
    ) -> Tensor:
        """A sample in the network's space, fp32 [b, n * P, D]."""
        predict, noise = self.predictor(conditions, types), self.noise(key)
        if self.steps == 1 and on_step is None:
            # What every sampler makes of one step, without its arithmetic on tensors as large as the latents.
            last = torch.full_like(key, self.process.num_steps - 1)
            return predict(noise, last).x0
        return sample(
            predict,
            self.process,
            noise,
            sampler=self.sampler,
            steps=self.steps,
            generator=self._generator if self.sampler == "ddpm" else None,
            on_step=on_step,
        )

    def predictor(
        self, conditions: tuple[Tensor, ...], types: Tensor | None
    ) -> Callable[[Tensor, Tensor], ModelPrediction]:
        """``(x_t [b, n * P, D], t [b]) -> ModelPrediction``. `types`: as in `models.student.Sample`, or [b, n]."""
        kinds = None if types is None or self.rows != "layer" else types.flatten()

        def predict(x_t: Tensor, t: Tensor) -> ModelPrediction:
            arguments: list[Any] = [x_t, t, *conditions, kinds]
            if self.padded and len(t) < self.rows_at_once:
                arguments = [None if part is None else _padded(part, self.rows_at_once) for part in arguments]
            *given, own_kinds = arguments
            prediction = self.head.predict(*given, types=own_kinds)
            return ModelPrediction(*(part[: len(t)] for part in (prediction.eps, prediction.x0, prediction.v)))

        return predict

    def noise(self, key: Tensor) -> Tensor:
        """fp32 [b, n * P, D] for keys int64 [b]."""
        return self._pool[key % len(self._pool)]

    def block_types(self, conditions: tuple[Tensor, ...], types: Tensor | None) -> Tensor:
        """0 for z_L, 1 for z_H: int64 [b, n]."""
        if types is None:
            types = self.head.default_types(len(conditions[0]), conditions)
        return types.view(len(conditions[0]), self.blocks)

    def denormalize(self, latents: Tensor, types: Tensor) -> Tensor:
        """Raw latents [b, n, P, D] of those in the network's space [b, n * P, D]."""
        blocks = latents.unflatten(1, (self.blocks, self.length))
        return self.normalizer.denormalize(blocks, types) if self.head.normalizes else blocks

    def normalize(self, latents: Tensor, types: Tensor) -> Tensor:
        """fp32 [b, n, P, D]: raw latents as the network sees them."""
        return self.normalizer.normalize(latents, types) if self.head.normalizes else latents.float()

    def mean_latent(self, types: Tensor) -> Tensor:
        """The mean latent of each type, broadcastable to [b, n, P, D]."""
        return self.normalizer.mean[types].unsqueeze(-2)

    def _pieces(self, conditions: tuple[Tensor, ...], types: Tensor | None, key: Tensor) -> Iterator[_Piece]:
        for start in range(0, len(key), self.rows_at_once):
            part = slice(start, start + self.rows_at_once)
            yield tuple(z[part] for z in conditions), None if types is None else types[part], key[part]

    def _check(self) -> None:
        """Go through the sampler once without the network."""
        nothing = torch.zeros(1, 1, 1)
        try:
            sample(
                lambda x, t: ModelPrediction(x, x, x),
                self.process,
                nothing,
                sampler=self.sampler,
                steps=self.steps,
                generator=torch.Generator() if self.sampler == "ddpm" else None,
            )
        except ValueError as error:
            raise InputError(str(error)) from error


def _padded(part: Tensor, rows: int) -> Tensor:
    """With rows of zeros to have so many."""
    return torch.cat((part, part.new_zeros(rows - len(part), *part.shape[1:])))


def read_answers(teacher: Teacher, z_H: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [n, seq_len] and halting logits [n] that the teacher's frozen heads read out of z_H [n, P, D]."""
    inner = teacher.model.model.inner
    z_H = z_H.to(teacher.dtype)
    found = inner.read_out(inner.carry_class(z_H=z_H, z_L=z_H))
    return found["logits"].argmax(-1), found["q_halt_logits"]
