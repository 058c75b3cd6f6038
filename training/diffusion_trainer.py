"""One training step of a diffusion head, and everything that a run of them carries from step to step.

``x_t = alpha_t z + sigma_t eps`` for normalised target latents z, a squared error in what the network predicts (DDPM,
Ho et al. 2020, algorithm 1; see `diffusion.process`), an optimiser of ours, and an average of the weights. Noise and
timesteps are functions of (seed, step, global batch slot): neither a restart nor the number of processes changes them.

    trainer = DiffusionTrainer916(head, config, dist)
    metrics = trainer.train_step(streamer.batch(trainer.step))
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.common import InputError
from diffusion.normalisation import LatentNormalizer
from diffusion.process import NoiseProcess, lognormal_timesteps, loss_weight, stratified_timesteps, stratify
from models.diffusion_blocks import DiffusionHead, compile_blocks
from training.checkpoint import Checkpoint
from training.diffusion_schema import DiffusionTrainConfig
from training.distributed import Distributed, FlatGradients
from training.ema import EMA, warmed_up_rate
from training.optim import build_optimizers, set_learning_rates
from training.slot_noise import SlotNoise
from training.state import load_optimizer_tensors, optimizer_tensors

GROUPS = ("model", "optim", "ema")

# Tell these draws from each other and from those of the data, the harvest and halting.
TIMESTEP_STREAM, NOISE_STREAM = 210, 211

# Updates without a finite gradient, one after the other, that end a run.
MOST_SKIPPED = 20


def corrupt(
    head: DiffusionHead,
    process: NoiseProcess,
    normalizer: LatentNormalizer,
    target: Tensor,
    types: Tensor,
    t: Tensor,
    noise: Tensor,
) -> tuple[Tensor, Tensor]:
    """What the network sees and what it should answer, fp32 [B, N, D] in normalised space.

    `target`: raw latents [B, (blocks,) P, D] with `types` int64 [B(, blocks)]; the blocks of an H-cycle come one after
    the other.
    """
    latents = normalizer.normalize(target, types) if head.normalizes else target.float()
    latents = latents.flatten(1, -2)
    return process.add_noise(latents, noise, t), process.target(head.output_kind, latents, noise, t)


def row_errors(output: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error of each row, fp32 [B]."""
    return (output - wanted).square().flatten(1).mean(1)


class _DiffusionTrainer:
    """The state of a run on one rank. `step`: updates made, those that were left out included."""

    def __init__(self, head: DiffusionHead, config: DiffusionTrainConfig, dist: Distributed):
        self.head, self.config, self.dist = head, config, dist
        assert isinstance(head.process, NoiseProcess) and isinstance(head.normalizer, LatentNormalizer)
        self.process, self.normalizer = head.process, head.normalizer
        self.step = 0
        local = config.local_batch_size(dist.world_size)
        self.slots = range(dist.rank * local, (dist.rank + 1) * local)
        self.gradients = FlatGradients(head.parameters())
        # Fused, because that AdamW, as our Muon, leaves an update out on the device's own say: `found_inf`.
        self.optimizers = build_optimizers(config, head, fused=True)
        self.ema = EMA(dict(head.named_parameters()), config.ema_rate)
        self._skipped_in_a_row = torch.zeros((), device=dist.device)
        self._cpu_process = NoiseProcess(self.process.alphas_cumprod)
        self._corrupt, self._row_errors = corrupt, row_errors
        self._noise = SlotNoise(config.seed, NOISE_STREAM, dist.device)

    def compile(self) -> None:
        """Compile the network's blocks, and the element-wise work around it, which would cost a dozen passes."""
        compile_blocks(self.head)
        self._corrupt = torch.compile(corrupt, fullgraph=True, dynamic=False)
        self._row_errors = torch.compile(row_errors, fullgraph=True, dynamic=False)

    def target(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Raw target latents [B, (blocks,) P, D] and their types, int64 [B(, blocks)]."""
        raise TypeError(f"{type(self).__name__} does not define what it learns")

    def train_step(self, batch: Any) -> dict[str, Tensor]:
        """One update on this rank's rows (a `LayerBatch` or an `HCycleBatch`) of the global batch.

        Returns sums over the rows. An update whose gradient is not finite is left out, and counted.
        """
        config, head = self.config, self.head
        with torch.no_grad():
            target, types = self.target(batch)
            t = self.timesteps()
            noise = self.noise(target.flatten(1, -2).shape[1:])
            noisy, wanted = self._corrupt(head, self.process, self.normalizer, target, types, t, noise)
            if config.diffusion.noises_own_estimates:
                noisy = self._of_own_estimates(noisy, noise, t, batch.conditions, types)
            objective = config.diffusion.loss
            weight = loss_weight(head.output_kind, self.process.snr(t), objective.weighting, objective.min_snr_gamma)

        error = self._row_errors(head.network(noisy, t, batch.conditions, types), wanted)
        loss = (weight * error).sum()
        (loss / config.global_batch_size).backward()
        self.gradients.all_reduce(self.dist)
        norm = self.gradients.norm()
        finite = torch.isfinite(norm)
        self._update(norm, finite)
        one = torch.ones_like(norm)
        return {
            "loss": torch.where(torch.isfinite(loss), loss, 0.0).detach(),
            "rows": one * len(t),
            "grad_norm": torch.where(finite, norm, 0.0),
            "skipped": torch.where(finite, 0.0, one),
            "count": one,
        }

    def _of_own_estimates(
        self, noisy: Tensor, noise: Tensor, t: Tensor, conditions: tuple[Tensor, ...], types: Tensor
    ) -> Tensor:
        """`noisy` with every other row, by turns, made of the head's estimate from the pure noise of that row.

        That is what DDIM makes of a first estimate: it keeps the noise. The answer asked for stays the truth, so that
        a sampler's evaluations learn to improve on each other (scheduled sampling, Bengio et al. 2015).
        """
        own = slice((self.slots.start + self.step) % 2, None, 2)
        if len(t[own]) == 0:
            return noisy
        last = torch.full_like(t[own], self.process.num_steps - 1)
        estimate = self.head.predict(noise[own], last, *(z[own] for z in conditions), types=types[own]).x0
        noisy[own] = self.process.add_noise(estimate, noise[own], t[own])
        return noisy

    def _update(self, norm: Tensor, finite: Tensor) -> None:
        """Clip, step, average; where the gradient is not `finite` (bool, 0-D) the weights stay as they are."""
        config = self.config
        for flat in self.gradients.tensors:
            if config.optim.grad_clip is not None:
                flat.mul_((config.optim.grad_clip / (norm + 1e-6)).clamp_max(1.0))
            flat.masked_fill_(~finite, 0.0)
        self.step += 1
        set_learning_rates(
            self.optimizers,
            self.step,
            warmup_steps=config.lr_warmup_steps,
            total_steps=config.max_steps,
            min_ratio=config.lr_min_ratio,
        )
        for optimizer in self.optimizers:
            optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            optimizer.step()
        self.gradients.zero()
        self.ema.update(warmed_up_rate(config.ema_rate, self.step))
        self._skipped_in_a_row = torch.where(finite, 0.0, self._skipped_in_a_row + 1)

    @property
    def learning_rate(self) -> float:
        """Of the last update: the matrices' under Muon."""
        return self.optimizers[0].param_groups[0]["lr"]

    def check_progress(self) -> None:
        """`InputError` if the last updates were all left out. Waits for the device: for when records are written."""
        skipped = int(self._skipped_in_a_row)
        if skipped >= MOST_SKIPPED:
            raise InputError(
                f"step {self.step}: the gradients of the last {skipped} steps were not finite and no update was made; "
                "continue from the last checkpoint with a lower lr"
            )

    def timesteps(self) -> Tensor:
        """This step's timesteps of this rank's rows, int64 [B]: one in every interval of the global batch, shuffled.

        Shuffled, because a slot draws from puzzles of its own, which would otherwise see one band of noise alone.
        """
        config, rows = self.config, self.config.global_batch_size
        draws = np.random.Generator(np.random.Philox(key=[config.seed, TIMESTEP_STREAM], counter=[0, 0, 0, self.step]))
        uniform = torch.from_numpy(draws.random(rows))
        order = torch.from_numpy(draws.permutation(rows))
        if config.noise.timesteps == "lognormal":
            drawn = lognormal_timesteps(stratify(uniform, order=order), self._cpu_process)
        else:
            drawn = stratified_timesteps(uniform, self._cpu_process.num_steps, order=order)
        return self.dist.send(drawn[self.slots.start : self.slots.stop])

    def noise(self, shape: torch.Size) -> Tensor:
        """This step's standard normal noise of this rank's rows, fp32 [B, *shape]."""
        return self._noise(self.step, self.slots, shape)

    def replicated(self) -> dict[str, dict[str, Tensor]]:
        """Everything that a checkpoint holds; it is equal on every rank."""
        return {
            "model": dict(self.head.state_dict()),
            "optim": optimizer_tensors(self.optimizers, self.head),
            "ema": self.ema.shadow,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint read with `GROUPS`."""
        self.step = checkpoint.step
        self.head.load_state_dict(checkpoint.groups["model"])
        load_optimizer_tensors(self.optimizers, self.head, checkpoint.groups["optim"])
        self.ema.load(checkpoint.groups["ema"])


class DiffusionTrainer916(_DiffusionTrainer):
    """Trains on single updates: `LayerBatch`."""

    def target(self, batch: Any) -> tuple[Tensor, Tensor]:
        return batch.target, batch.types


class DiffusionTrainer9160(_DiffusionTrainer):
    """Trains on whole H-cycles and on jumps: `HCycleBatch`."""

    def target(self, batch: Any) -> tuple[Tensor, Tensor]:
        return batch.target, self.head.default_types(len(batch.target), batch.conditions)
