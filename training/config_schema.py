"""What a training run may be told, as pydantic models that refuse unknown keys at every level; `evaluate.py` and
`diffusion_train.py` have schemas of their own (`training.evaluate_schema`, `training.diffusion_schema`).

The values live in ``config/``; here are types, ranges and the combinations that cannot work. A key that joins
later gets a default here as well, so that the configuration recorded in an older checkpoint still validates.

Usage: ``PretrainConfig.model_validate(mapping)``, or with readable errors `training.config.validate_config`.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from datasets.common import InputError
from training.curriculum import DepthStage, check_stages

# `run_name=7` is a name, although the override grammar reads a number.
Text = Annotated[str, Field(strict=False, coerce_numbers_to_str=True, min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Device = Literal["auto", "cpu", "cuda", "mps"]
ActEval = Literal["fixed", "early"]
SavedOutput = Literal["inputs", "labels", "puzzle_identifiers", "preds", "logits", "q_halt_logits", "q_continue_logits"]


class Section(BaseModel):
    """Strict: ``true`` is no integer, ``"3"`` no number. A field's docstring is its line in ``--help``."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class LossConfig(Section):
    name: Text
    """the loss head, module@Class in models/"""
    loss_type: Literal["stablemax_cross_entropy", "softmax_cross_entropy"]
    """the token loss"""


class ArchConfig(Section):
    """`name` and `loss`; the other keys are the architecture's and its own `config_class` checks them."""

    model_config = ConfigDict(extra="allow")

    name: Text
    """the architecture, module@Class in models/"""
    loss: LossConfig
    forward_dtype: Literal["auto", "bfloat16", "float32", "float16"]
    """auto: bfloat16 on CUDA, float32 elsewhere"""

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The architecture's keys, for ``config_class(**hyperparameters, **from_the_data)``."""
        return self.model_dump(exclude={"name", "loss"})


class ArcEvaluatorConfig(Section):
    name: Literal["arc@ARC"]
    submission_K: int = Field(default=2, ge=1)
    """attempts in submission.json"""
    pass_Ks: list[Annotated[int, Field(ge=1)]] = Field(default=[1, 2, 5, 10, 100, 1000], min_length=1)
    """the K of pass@K"""
    pool_evaluations: bool = False
    """keep the votes of earlier evaluations, as the original does: an ensemble over checkpoints"""


class SudokuEvaluatorConfig(Section):
    name: Literal["sudoku@Sudoku"]


class MazeEvaluatorConfig(Section):
    name: Literal["maze@Maze"]


EvaluatorConfig = Annotated[
    ArcEvaluatorConfig | SudokuEvaluatorConfig | MazeEvaluatorConfig, Field(discriminator="name")
]


class OptimConfig(Section):
    name: Literal["adam_atan2", "adamw", "muon"]
    """the optimiser of the weights; the puzzle table always has its own"""
    grad_clip: float | None = Field(gt=0)
    """largest norm of the gradient; null: unclipped"""
    muon_lr: float | None = Field(default=None, gt=0)
    """learning rate of the matrices"""
    muon_momentum: float | None = Field(default=None, ge=0, lt=1)
    """momentum of the matrices"""

    @model_validator(mode="after")
    def _muon_keys(self) -> OptimConfig:
        for key in ("muon_lr", "muon_momentum"):
            value = getattr(self, key)
            if self.name == "muon" and value is None:
                raise ValueError(f"optim.name=muon needs a value for optim.{key}; optim=muon brings one")
            if self.name != "muon" and value is not None:
                raise ValueError(
                    f"optim.{key}={value} has no effect with optim.name={self.name}: drop it, or optim=muon"
                )
        return self


class LoggerConfig(Section):
    wandb: bool
    """log to Weights & Biases"""
    tensorboard: bool
    """write TensorBoard event files"""
    progress_bar: bool
    """show a bar with the time that is left"""
    plots: bool
    """draw the curves at the end of a run"""


def check_evaluators(evaluators: list[EvaluatorConfig]) -> None:
    names = [evaluator.name for evaluator in evaluators]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"evaluators names {name} {names.count(name)} times: their figures would collide")


class RunConfig(Section):
    """What every training run takes, whatever it trains."""

    global_batch_size: int = Field(ge=1)
    """rows of an optimiser step over all processes"""

    lr: float = Field(gt=0)
    """learning rate of the weights"""
    lr_min_ratio: float = Field(ge=0, le=1)
    """share of lr that a cosine ends at; 1: constant after the warm-up"""
    lr_warmup_steps: int = Field(ge=0)
    """steps of linear warm-up"""
    beta1: float = Field(ge=0, lt=1)
    """decay of the first moment"""
    beta2: float = Field(ge=0, lt=1)
    """decay of the second moment"""
    weight_decay: float = Field(ge=0)
    """decoupled decay of the weights"""
    optim: OptimConfig
    ema_rate: float = Field(ge=0, lt=1)
    """decay a step of the averaged weights"""

    seed: Seed
    """of everything drawn at random"""
    device: Device
    """auto: CUDA, else Apple's GPU (in one process), else the CPU"""
    compile: bool | None
    """torch.compile; null: on CUDA"""

    project_name: Text
    """the project at Weights & Biases"""
    run_name: Text | None
    """null: made of what is trained, on what, and a digest of the settings"""
    checkpoint_path: Text | None
    """the run's folder; null: runs/RUN_NAME"""
    resume: Text | None
    """auto: go on from the run's newest checkpoint, if any; a path: go on from that one; null: start anew"""
    checkpoint_interval: int | None = Field(ge=1)
    """save every so many steps as well"""
    keep_last: int = Field(ge=1)
    """checkpoints kept"""
    log_interval: int = Field(ge=1)
    """steps between records"""
    logger: LoggerConfig

    # What changes where and how a run is watched, but not what it computes.
    _unnamed: ClassVar[frozenset[str]] = frozenset(
        {"checkpoint_path", "resume", "project_name", "logger", "log_interval", "keep_last", "checkpoint_interval"}
        | {"device", "compile"}
    )

    @property
    @abstractmethod
    def subject(self) -> str:
        """What is trained and on what, for a run without a name."""

    @property
    def run_label(self) -> str:
        """`run_name`, or a name that settings alike share, so that the same command goes on with its run."""
        if self.run_name is not None:
            return self.run_name
        settings = self.model_dump(mode="json", exclude=set(self._unnamed))
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:6]
        return f"{self.subject}-{digest}"

    @property
    def run_dir(self) -> Path:
        """The folder of the run's configuration, records and checkpoints."""
        return Path(self.checkpoint_path) if self.checkpoint_path is not None else Path("runs") / self.run_label

    def local_batch_size(self, world_size: int) -> int:
        """Rows of a step that each process takes; `InputError` where they cannot be shared out evenly."""
        if self.global_batch_size % world_size:
            raise InputError(
                f"global_batch_size={self.global_batch_size} cannot be shared out over {world_size} processes"
                f": use a multiple of {world_size}"
            )
        return self.global_batch_size // world_size


class PretrainConfig(RunConfig):
    """Everything ``pretrain.py`` takes."""

    arch: ArchConfig

    data_paths: list[Text] = Field(min_length=1)
    """folders of the training data"""
    data_paths_test: list[Text]
    """folders of the evaluation data; []: those of data_paths"""
    max_train_puzzles: int | None = Field(ge=1)
    """train on a seeded subset of this many puzzles, and evaluate on what belongs to them"""
    max_eval_puzzles: int | None = Field(ge=1)
    """evaluate on a seeded subset of this many puzzles"""

    evaluators: list[EvaluatorConfig]
    """figures beyond loss and accuracy; []: none"""
    eval_interval: int | None = Field(ge=1)
    """epochs between evaluations; null: one at the end"""
    min_eval_interval: int = Field(ge=0)
    """leave out this many of the first evaluations"""
    eval_batch_size: int | None = Field(ge=1)
    """rows of an evaluation batch over all processes; null: as many as train at once"""
    act_eval: ActEval
    """fixed: every row runs halt_max_steps, as published; early: rows stop when they halt"""
    eval_save_outputs: list[SavedOutput]
    """arrays that an evaluation writes to disk, as they were after every ACT step"""

    cuda_graph: bool = False
    """launch a step's forward and backward pass as one CUDA graph"""
    micro_batch_size: int | None = Field(ge=1)
    """most rows in one forward pass of a process; null: its whole share"""
    epochs: int = Field(ge=1)
    """passes over the puzzles, one augmentation of each a pass"""
    max_steps: int | None = Field(ge=1)
    """end the run, and its learning-rate schedule, after this many optimiser steps"""

    puzzle_emb_lr: float = Field(ge=0)
    """learning rate of the puzzle table"""
    puzzle_emb_weight_decay: float = Field(ge=0)
    """decay of the rows of the puzzle table that a batch touches"""

    ema: bool
    """evaluate an exponential moving average of the weights"""
    ema_puzzle_emb: bool
    """average the puzzle table as well"""
    freeze_weights: bool
    """train the puzzle table alone"""
    staggered_start: bool = False
    """spread the ACT steps of the first rows, which else all end together for as long as none halts early"""
    depth_curriculum: list[DepthStage] = []
    """cycles of a run's first steps: {until: 0.3, H_cycles: 1, L_cycles: 2}, ...; []: always those of arch"""

    load_checkpoint: Text | None
    """weights to start a new run from"""
    checkpoint_every_eval: bool
    """save at every evaluation instead of at the last only"""

    @model_validator(mode="after")
    def _combinations(self) -> PretrainConfig:
        if self.eval_interval is not None:
            self._check_eval_interval(self.eval_interval)
        if self.micro_batch_size is not None and self.global_batch_size > self.micro_batch_size:
            _check_multiple("global_batch_size", self.global_batch_size, self.micro_batch_size, "micro_batch_size")
        if self.ema_puzzle_emb and not self.ema:
            raise ValueError("ema_puzzle_emb=true has no effect with ema=false: set ema=true")
        if self.resume not in (None, "auto") and self.load_checkpoint is not None:
            raise ValueError(
                f"resume={self.resume} goes on with a run, load_checkpoint={self.load_checkpoint} starts one"
                ": give one of them"
            )
        if self.freeze_weights and self.load_checkpoint is None and self.resume in (None, "auto"):
            raise ValueError("freeze_weights=true would keep random weights: name trained ones with load_checkpoint")
        if self.freeze_weights and self.arch.hyperparameters.get("puzzle_emb_ndim") == 0:
            raise ValueError("freeze_weights=true with arch.puzzle_emb_ndim=0 leaves nothing to train")
        check_stages(self.depth_curriculum, self.arch.hyperparameters)
        check_evaluators(self.evaluators)
        return self

    def _check_eval_interval(self, interval: int) -> None:
        if self.epochs < interval:
            raise ValueError(
                f"eval_interval={interval} is longer than epochs={self.epochs}: "
                f"set eval_interval={self.epochs} or eval_interval=null for one evaluation at the end"
            )
        _check_multiple("epochs", self.epochs, interval, "eval_interval")
        evaluations = self.epochs // interval
        if self.min_eval_interval >= evaluations:
            raise ValueError(
                f"min_eval_interval={self.min_eval_interval} leaves out all {evaluations} evaluations of "
                f"epochs={self.epochs} with eval_interval={interval}: keep it below {evaluations}"
            )

    def local_batch_size(self, world_size: int) -> int:
        local = super().local_batch_size(world_size)
        if self.micro_batch_size is not None and local > self.micro_batch_size and local % self.micro_batch_size:
            raise InputError(
                f"micro_batch_size={self.micro_batch_size} does not divide the {local} rows of each of the "
                f"{world_size} processes (global_batch_size={self.global_batch_size})"
            )
        return local

    def rows_at_once(self, world_size: int) -> int:
        """Rows of one forward pass of a process."""
        local = self.local_batch_size(world_size)
        return min(local, self.micro_batch_size or local)

    def evaluation_rows(self, world_size: int) -> int:
        """Rows of an evaluation batch over all processes: no more at once than in training, unless told otherwise."""
        return self.eval_batch_size or self.rows_at_once(world_size) * world_size

    _unnamed: ClassVar[frozenset[str]] = RunConfig._unnamed | {
        "cuda_graph",
        "micro_batch_size",
        "eval_batch_size",
        "eval_save_outputs",
    }

    @property
    def subject(self) -> str:
        architecture = self.arch.name.partition("@")[0].rpartition(".")[2]
        return f"{architecture}-{'+'.join(Path(path).name for path in self.data_paths)}"


def _check_multiple(name: str, value: int, divisor: int, divisor_name: str) -> None:
    if value % divisor:
        below = value - value % divisor
        raise ValueError(
            f"{name}={value} is not a multiple of {divisor_name}={divisor}: "
            f"set {name}={below} or {name}={below + divisor}"
        )
