"""What ``diffusion_train.py`` may be told; the style and the strictness are those of `training.config_schema`.

Usage: ``config = load_config("cfg_diffusion_train", ["diffusion=d9160_jump", "checkpoint=runs/sudoku"])``
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from training.config_schema import RunConfig, Section, Text

KIND = "diffusion"  # of a head's checkpoint, in its manifest
Rows = Literal["layer", "h_cycle", "jump"]

# What the teacher decides of a head; diffusion.* may not set it.
TEACHER_KEYS = ("latent_size", "length", "target_blocks", "mlp_t", "pos_encodings")


class HarvestConfig(Section):
    """How latents get from the frozen teacher into batches; see ``diffusion_streaming.py``."""

    replay: float = Field(default=4.0, gt=0)
    """expected uses of every harvested training row; more costs the teacher less and the data variety"""
    lanes_per_row: int = Field(default=1, ge=1)
    """puzzles that the teacher works on for every row of the batch"""
    ring_gib: float | None = Field(default=None, gt=0)
    """memory of the ring of latents in a process; null: 16 on CUDA, 0.25 elsewhere"""
    buffer_device: Literal["auto", "device", "host"] = "auto"
    """where the ring lies; auto: on the device; host: in pinned memory of the host"""
    act_step_weights: Literal["copy_error", "uniform"] | list[Annotated[float, Field(ge=0)]] = "copy_error"
    """share of each ACT step in the rows; copy_error: by how far a latent moves in it, measured; a list: one a step"""
    act_step_floor: float = Field(default=0.05, ge=0, le=1)
    """smallest weight of an ACT step under copy_error, relative to the largest"""
    own_path: float | None = Field(default=None, ge=0)
    """updates, on average, after which the head's own path starts anew; it leads to every fourth row of single updates,
    whatever act_step_weights say; 0: no such rows; null: a quarter of the recursion, for diffusion.rows=layer alone"""
    jump_to: int | None = Field(default=None, ge=1)
    """ACT step whose final latents a jump aims at, counted from 1; null: the teacher's last"""
    jump_from: list[Annotated[int, Field(ge=0)]] = Field(default=[0], min_length=1)
    """ACT steps after which a jump starts; 0: before the first"""

    @model_validator(mode="after")
    def _combinations(self) -> HarvestConfig:
        if isinstance(self.act_step_weights, list) and not sum(self.act_step_weights) > 0:
            raise ValueError(
                f"harvest.act_step_weights={self.act_step_weights} gives no ACT step any weight: "
                "make one positive, or harvest.act_step_weights=uniform"
            )
        if self.jump_to is not None and max(self.jump_from) >= self.jump_to:
            raise ValueError(
                f"harvest.jump_from={self.jump_from} does not lie before harvest.jump_to={self.jump_to}: "
                "a jump goes forward, so lower the one or raise the other"
            )
        if len(set(self.jump_from)) < len(self.jump_from):
            raise ValueError(f"harvest.jump_from={self.jump_from} names an ACT step twice: drop one")
        return self


class LossWeightConfig(Section):
    weighting: Literal["uniform", "min_snr", "snr"] = "uniform"
    """weight of the loss by noise level"""
    min_snr_gamma: float = Field(default=5.0, gt=0)
    """where min_snr cuts the signal-to-noise ratio"""


class DiffusionSection(Section):
    """`name`, `rows`, `loss`, `own_estimates`; other keys are the head's, and its `config_class` checks them."""

    model_config = ConfigDict(extra="allow")

    name: Text
    """the head, module@Class in models/"""
    rows: Rows
    """what it learns; layer: one update of one latent; h_cycle: all updates of an H-cycle; jump: a later ACT step"""
    loss: LossWeightConfig = LossWeightConfig()
    own_estimates: bool | None = None
    """add noise to the head's own estimate in every other row, as a sampler's later evaluations find it; null: where
    several latents are predicted as x0"""

    @property
    def prediction(self) -> str:
        """What the network predicts; S0's heads, which have no such key, predict eps."""
        return self.hyperparameters.get("prediction", "eps")

    @property
    def noises_own_estimates(self) -> bool:
        """`own_estimates` with null resolved."""
        if self.own_estimates is None:
            return self.rows != "layer" and self.prediction == "x0"
        return self.own_estimates

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The head's keys, for ``config_class(**hyperparameters, **from_the_teacher)``."""
        return self.model_dump(exclude={"name", "rows", "loss", "own_estimates"})


class NoiseSection(Section):
    schedule: Literal["linear", "cosine", "sigmoid", "edm"]
    """how noise grows over the timesteps"""
    steps: int = Field(default=1000, ge=2)
    """timesteps of the noise process"""
    beta_start: float | None = Field(default=None, gt=0, lt=1)
    """variance added at the first timestep of the linear schedule"""
    beta_end: float | None = Field(default=None, gt=0, lt=1)
    """variance added at the last timestep of the linear schedule"""
    shift: float = Field(default=1.0, gt=0, le=1000)
    """factor on sigma / alpha at every timestep: above 1, more of them are nearly pure noise"""
    timesteps: Literal["stratified", "lognormal"] = "stratified"
    """how they are drawn in training; stratified: one in every B-th of them; lognormal: as in EDM"""

    @model_validator(mode="after")
    def _combinations(self) -> NoiseSection:
        for key in ("beta_start", "beta_end"):
            value = getattr(self, key)
            if self.schedule == "linear" and value is None:
                raise ValueError(f"noise.schedule=linear needs a value for noise.{key}; noise=linear brings one")
            if self.schedule != "linear" and value is not None:
                raise ValueError(
                    f"noise.{key}={value} has no effect with noise.schedule={self.schedule}: drop it, or noise=linear"
                )
        if self.beta_start is not None and self.beta_end is not None and self.beta_start > self.beta_end:
            raise ValueError(
                f"noise.beta_start={self.beta_start} is above noise.beta_end={self.beta_end}: noise must grow"
            )
        return self

    @property
    def settings(self) -> dict[str, float]:
        """The arguments of `diffusion.schedule.alphas_cumprod` beyond the schedule and its steps."""
        found = {"beta_start": self.beta_start, "beta_end": self.beta_end, "shift": self.shift}
        return {key: value for key, value in found.items() if value is not None}


class SamplerConfig(Section):
    name: Literal["ddpm", "ddim", "dpm_solver", "heun"] = "ddim"
    """the sampler of evaluations"""
    steps: list[Annotated[int, Field(ge=1)]] = Field(default=[1, 4], min_length=1)
    """numbers of sampling steps that are evaluated"""


class DiffusionTrainConfig(RunConfig):
    """Everything ``diffusion_train.py`` takes."""

    checkpoint: Text
    """the teacher: a run's folder or one of its checkpoints"""
    data_paths: list[Text] | None = Field(min_length=1)
    """folders of the data the teacher was trained on; null: where it found them"""

    diffusion: DiffusionSection
    noise: NoiseSection
    harvest: HarvestConfig
    sampler: SamplerConfig

    max_steps: int = Field(ge=1)
    """optimiser steps of the run"""
    eval_interval: int | None = Field(ge=1)
    """steps between evaluations; null: one at the end"""
    eval_puzzles: int = Field(ge=1)
    """held-out puzzles of an evaluation"""
    regression_checkpoint: Text | None
    """a trained regression head to be compared with in evaluations"""

    @model_validator(mode="after")
    def _combinations(self) -> DiffusionTrainConfig:
        if self.eval_interval is not None and self.eval_interval > self.max_steps:
            raise ValueError(
                f"eval_interval={self.eval_interval} is longer than max_steps={self.max_steps}: "
                "lower it, or eval_interval=null for one evaluation at the end"
            )
        if self.optim.name == "adam_atan2":
            raise ValueError(
                "optim.name=adam_atan2 is for recursive models; heads train with optim=muon or optim=adamw"
            )
        self._check_rows()
        prediction = self.diffusion.prediction
        if self.diffusion.own_estimates and prediction != "x0":
            raise ValueError(
                f"diffusion.own_estimates=true is for heads that predict x0, not diffusion.prediction={prediction}: "
                "set diffusion.own_estimates=false"
            )
        if max(self.sampler.steps) > self.noise.steps:
            raise ValueError(
                f"sampler.steps={self.sampler.steps} has more than noise.steps={self.noise.steps}: "
                "lower the one or raise the other"
            )
        if prediction == "regression" and self.regression_checkpoint is not None:
            raise ValueError(
                f"regression_checkpoint={self.regression_checkpoint} is what others are compared with: "
                "drop it for diffusion.prediction=regression"
            )
        return self

    def _check_rows(self) -> None:
        """ValueError for a setting that has no effect on the rows that the head learns."""
        harvest, rows, loss = self.harvest, self.diffusion.rows, self.diffusion.loss
        regression = self.diffusion.prediction == "regression"
        idle = {
            "harvest.own_path": bool(harvest.own_path) and rows != "layer",
            "harvest.jump_to": harvest.jump_to is not None and rows != "jump",
            "harvest.jump_from": harvest.jump_from != [0] and rows != "jump",
            "harvest.act_step_weights": harvest.act_step_weights != "copy_error" and rows == "jump",
        }
        for key, found in idle.items():
            if found:
                value = getattr(harvest, key.removeprefix("harvest."))
                raise ValueError(f"{key}={value} has no effect with diffusion.rows={rows}: drop it")
        if regression and loss.weighting != "uniform":
            raise ValueError(
                f"diffusion.loss.weighting={loss.weighting} weights noise levels, of which "
                "diffusion.prediction=regression has none: drop it"
            )

    _unnamed: ClassVar[frozenset[str]] = RunConfig._unnamed | {
        "eval_interval",
        "eval_puzzles",
        "sampler",
        "regression_checkpoint",
    }

    @property
    def subject(self) -> str:
        teacher = Path(self.checkpoint)
        # A checkpoint is RUN/checkpoints/step_N.
        run = teacher.parent.parent if teacher.parent.name == "checkpoints" else teacher
        return f"{self.diffusion.name.partition('@')[0]}-{self.diffusion.rows}-{run.name}"
