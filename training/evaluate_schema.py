"""What ``evaluate.py`` may be told; the style and the strictness are those of `training.config_schema`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from training.config_schema import (
    ActEval,
    ArchConfig,
    Device,
    EvaluatorConfig,
    SavedOutput,
    Section,
    Seed,
    Text,
    check_evaluators,
)


class DiffusionEvalConfig(Section):
    """For the checkpoint of a diffusion head. Null means: as the head's run says."""

    teacher: Text | None = None
    """the teacher's run or checkpoint, where it was moved"""
    regression_checkpoint: Text | None = None
    """a trained regression head to be compared with"""
    sampler: Literal["ddpm", "ddim", "dpm_solver", "heun"] | None = None
    """how samples are drawn"""
    steps: list[Annotated[int, Field(ge=1)]] | None = Field(default=None, min_length=1)
    """numbers of sampling steps, each a column of the report"""
    puzzles: int = Field(default=256, ge=1)
    """held-out rows that are measured"""
    timesteps: int = Field(default=10, ge=2)
    """noise levels at which errors are measured"""
    seeds: int = Field(default=8, ge=2)
    """noise seeds over which samples are compared"""
    rollout: bool = True
    """solve puzzles with the head in the place of the teacher's recursion"""
    rollout_steps: list[Annotated[int, Field(ge=1)]] = Field(default=[1], min_length=1)
    """numbers of sampling steps of those that solve puzzles"""
    compile: bool | None = None
    """torch.compile, which takes a minute or two; null: on CUDA"""


class CaptureConfig(Section):
    """What becomes of every ACT step, beside the answers; see docs/trajectories.md."""

    depth: Literal["eval", "h_cycle", "layer"] | None = None
    """eval: the answers after every ACT step; h_cycle: after every H-cycle too, and its latents; layer: each z_L too"""
    rows: list[Annotated[int, Field(ge=0)]] | None = Field(default=None, min_length=1)
    """only these rows of the test split; null: all of them"""


class EvaluateConfig(Section):
    """Everything ``evaluate.py`` takes. Null means: as the checkpoint's own configuration says."""

    checkpoint: Text
    """a run's folder (of pretrain.py or diffusion_train.py), one of its checkpoints, or an original file of weights"""
    arch: ArchConfig | None = None
    """the architecture, for a file that holds nothing but weights"""
    use_ema: bool
    """evaluate the averaged weights where the checkpoint has them"""
    data_paths: list[Text] | None
    """folders of the data"""
    max_eval_puzzles: int | None = Field(ge=1)
    """evaluate on a seeded subset of this many puzzles"""
    evaluators: list[EvaluatorConfig] | None
    """figures beyond loss and accuracy; []: none"""
    act_eval: ActEval
    """fixed: every row runs halt_max_steps; early: rows stop when they halt"""
    act_eval_confidence: float = Field(gt=0, lt=1)
    """halting probability above which act_eval=early lets a row stop"""
    halt_max_steps: int | None = Field(ge=1)
    """deep-supervision steps of a row"""
    eval_batch_size: int | None = Field(ge=1)
    """rows of a batch over all processes"""
    eval_save_outputs: list[SavedOutput]
    """arrays to write to disk as they were after every ACT step; naming any sets capture.depth=eval"""
    capture: CaptureConfig = CaptureConfig()
    """of the puzzles being solved"""
    output_dir: Text | None
    """where figures and files go; null: beside the checkpoint"""
    seed: Seed | None
    """of the subset of puzzles"""
    device: Device
    """auto: CUDA, else Apple's GPU (in one process), else the CPU"""
    diffusion: DiffusionEvalConfig = DiffusionEvalConfig()
    """only for a diffusion head"""

    @model_validator(mode="after")
    def _combinations(self) -> EvaluateConfig:
        if self.arch is not None and not self.data_paths:
            raise ValueError(
                f"arch is for a checkpoint={self.checkpoint} that holds nothing but weights: "
                "it does not name its data either, so give data_paths=[...] as well"
            )
        if self.data_paths == []:
            raise ValueError("data_paths=[] leaves nothing to evaluate: name a folder, or null for the checkpoint's")
        if self.capture.rows is not None and self.capture_depth is None:
            raise ValueError(
                f"capture.rows={self.capture.rows} has no effect, as nothing is captured: set capture.depth as well"
            )
        check_evaluators(self.evaluators or [])
        return self

    @property
    def capture_depth(self) -> Literal["eval", "h_cycle", "layer"] | None:
        """How deep to capture; None: not at all."""
        return self.capture.depth or ("eval" if self.eval_save_outputs else None)
