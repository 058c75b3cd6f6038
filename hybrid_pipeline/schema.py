"""What ``hybrid_train.py`` may be told; the style and the strictness are those of `training.config_schema`.

Usage: ``config = load_config("cfg_hybrid_train", ["hybrid=slots", "llm.model=smollm2"], HybridTrainConfig)``
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hybrid_pipeline.model import Injection
from hybrid_pipeline.text_rows import Control
from training.config_schema import ArchConfig, RunConfig, Section, Text
from training.curriculum import DepthStage, check_stages

CONFIG = "cfg_hybrid_train"
KIND = "hybrid"  # of a checkpoint, in its manifest
TRM = "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1"
COARSE_TO_FINE = "recursive_reasoning.trm_hierarchical_diffusion@TRMHierarchicalDiffusion"


class LlmSection(Section):
    model: Text
    """stub, minilm, smollm2, a folder, or a name on the hub; it stays frozen"""
    use_chat_template: bool
    """put every text into the model's chat template as a user's message"""
    max_tokens: int = Field(ge=1)
    """longer texts are cut"""
    dtype: Literal["float32", "bfloat16", "float16"]
    """of the language model's weights"""
    device_map: Text | None
    """where transformers puts the language model, as in auto; null: the CPU"""
    cache_dir: Text | None
    """folder of the states that were computed before, here or on another machine; null: none"""


class InstructedSection(Section):
    kind: Literal["instructed"]
    train_rows: int = Field(ge=1)
    """grids to train on"""
    test_rows: int = Field(ge=2)
    """grids to test on, none of them trained on"""
    sizes: list[Annotated[int, Field(ge=2, le=29)]] = Field(min_length=2, max_length=2)
    """smallest and largest side of a grid"""
    all_colours: bool = False
    """cells of all ten colours, as ARC has them, not only of those that rules name"""


class LarcSection(Section):
    kind: Literal["larc"]
    path: Text
    """the file of descriptions, one JSON object a line"""
    side: int = Field(ge=2, le=30)
    """side of a row; tasks with larger grids are left out"""
    verified_only: bool
    """only descriptions whose writer solved the test afterwards"""
    test_tasks: Text | None
    """a JSON list of the held-out tasks; null: half of them, by split_seed"""
    split_seed: int = 0
    """which half of the tasks is held out; the run's own seed does not change it"""
    held_out_demonstrations: bool
    """train on the demonstration pairs of held-out tasks too"""
    test_trained_tasks: bool = False
    """test on the other tasks too: their test pairs and a description of each are not trained on"""
    translate: bool = False
    """move half of the trained rows over the canvas, which leaves descriptions true"""


class HybridSection(Section):
    injection: Injection
    """where the text enters: input, puzzle_slots, or carry (which cannot be trained for arch.H_cycles > 1)"""
    text_slots: int = Field(ge=1)
    """tokens that the text fills with injection=puzzle_slots"""
    use_cross_attention_bridge: bool
    """every position asks the text's tokens; false: all get their mean"""
    bottleneck: int = Field(ge=1)
    """width inside the adapter"""
    bridge_heads: int = Field(ge=1)
    """heads of the bridge's attention"""


class HybridTrainConfig(RunConfig):
    """Everything ``hybrid_train.py`` takes."""

    arch: ArchConfig
    texts: Annotated[InstructedSection | LarcSection, Field(discriminator="kind")]
    llm: LlmSection
    hybrid: HybridSection

    text: Control
    """what a run is trained on: text, or as controls shuffled (that of another row) or none"""
    trm_checkpoint: Text | None
    """a trained TRM to start from: a run's folder, a checkpoint or an original file"""
    adapter_steps: int | None = Field(ge=0)
    """first steps in which the adapter alone is trained; null: all of them, the TRM stays frozen"""

    max_steps: int = Field(ge=1)
    """optimiser steps of the run"""
    eval_interval: int | None = Field(ge=1)
    """steps between evaluations; null: one at the end"""
    eval_batch_size: int | None = Field(ge=1)
    """rows of an evaluation batch over all processes; null: as many as train at once"""
    depth_curriculum: list[DepthStage]
    """cycles of a run's first steps, as in pretrain.py; []: always those of arch"""
    staggered_start: bool
    """rows begin at different ACT steps, so that they do not all end together"""
    ema: bool
    """evaluate an exponential moving average of the weights"""
    puzzle_emb_lr: float = Field(ge=0)
    """learning rate of the puzzle table"""
    puzzle_emb_weight_decay: float = Field(ge=0)
    """decay of the rows of the puzzle table"""

    @model_validator(mode="after")
    def _combinations(self) -> HybridTrainConfig:
        if self.arch.name not in (TRM, COARSE_TO_FINE):
            raise ValueError(
                f"arch.name={self.arch.name}: text is for a TRM or a coarse-to-fine model; use arch=trm, "
                "arch=trm_split or arch=trm_hierarchical_diffusion"
            )
        if self.eval_interval is not None and self.eval_interval > self.max_steps:
            raise ValueError(
                f"eval_interval={self.eval_interval} is longer than max_steps={self.max_steps}: "
                "lower it, or eval_interval=null for one evaluation at the end"
            )
        if self.adapter_steps != 0 and self.trm_checkpoint is None:
            raise ValueError(
                f"adapter_steps={self.adapter_steps} would train an adapter for a TRM of random weights: "
                "name a trained one with trm_checkpoint, or adapter_steps=0"
            )
        check_stages(self.depth_curriculum, self.arch.hyperparameters)
        return self

    @property
    def adapter_share(self) -> int:
        """Steps in which the TRM stays as it is."""
        return self.max_steps if self.adapter_steps is None else self.adapter_steps

    _unnamed: ClassVar[frozenset[str]] = RunConfig._unnamed | {"eval_interval", "eval_batch_size"}

    @property
    def subject(self) -> str:
        return f"hybrid-{self.texts.kind}-{self.hybrid.injection}-{self.text}"


IDENTITY = {
    *("arch", "texts", "llm", "hybrid", "text", "seed", "global_batch_size", "ema", "optim", "adapter_steps"),
    *("depth_curriculum", "staggered_start"),
}
