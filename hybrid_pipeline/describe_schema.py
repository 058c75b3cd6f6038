"""What ``hybrid_describe.py`` may be told; the style and the strictness are those of `training.config_schema`.

Usage: ``config = load_config(CONFIG, ["checkpoint=runs/hybrid", "adapter.use_vae_adapter=true"], DescribeConfig)``
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from training.config_schema import RunConfig, Section, Text

CONFIG = "cfg_hybrid_describe"
KIND = "description"  # of a checkpoint, in its manifest

Heard = Literal["text", "constant"]


class SpeakerSection(Section):
    model: Text
    """a causal language model: stub, smollm2, a folder, or a name on the hub; it stays frozen"""
    dtype: Literal["float32", "bfloat16", "float16"]
    """of its weights; logits are in float32"""
    device_map: Text | None
    """where transformers puts it, as in auto; null: the device of the run"""


class AdapterSection(Section):
    level: int
    """whose latents are read: of a coarse-to-fine model 0 is the coarsest, -1 the last, which a TRM has alone"""
    prefix_tokens: int = Field(ge=1)
    """tokens of the prefix"""
    bottleneck: int = Field(ge=1)
    """width inside the adapter"""
    use_attention_pooling: bool
    """cells are pooled by learned attention; false: by their mean"""
    pooling_heads: int = Field(ge=1)
    """heads of the attention"""
    use_vae_adapter: bool
    """a Gaussian bottleneck between pooling and prefix"""
    vae_size: int = Field(ge=1)
    """its dimensions"""
    vae_beta: float = Field(ge=0)
    """price of a nat of its KL, in nats of the description; 1: the evidence lower bound"""
    vae_warmup_steps: int = Field(ge=0)
    """first steps, those for words included, over which the price rises from 0"""
    vae_free_bits: float = Field(ge=0)
    """nats a dimension that are charged in any case, so that there is nothing to gain below"""


class DescribeConfig(RunConfig):
    """Everything ``hybrid_describe.py`` takes."""

    checkpoint: Text
    """a run of hybrid_train.py on instructed grids, or one of its checkpoints; it stays as it is"""
    latents: Heard
    """what is trained on: text, the latents of a row that was told; constant: one prefix for all rows, the control"""
    speaker: SpeakerSection
    adapter: AdapterSection

    latent_rows: int = Field(ge=1)
    """rows, of all training grids in turn, whose latents are computed once and kept in memory"""
    word_steps: int = Field(ge=0)
    """first steps, which ask the prefix for the description's words in any order, without the language model's body"""
    word_batch_size: int = Field(ge=1)
    """rows of such a step"""
    word_weight: float = Field(default=0.0, ge=0)
    """of the loss of such rows beside the language model's in the steps that follow; 0: they end with word_steps"""
    max_steps: int = Field(ge=1)
    """optimiser steps of the run, those first ones included"""
    eval_rows: int | None = Field(ge=2)
    """rows of each test set; null: all"""
    eval_batch_size: int = Field(ge=1)
    """rows that are scored at once"""
    identify_rows: int = Field(ge=0)
    """rows of the unseen set whose rule is asked for, every instance's description being scored"""
    identify_wordings: int = Field(ge=1)
    """sentences of every instance that are chosen among, their likelihoods added up; those there are at most"""

    @model_validator(mode="after")
    def _combinations(self) -> DescribeConfig:
        if self.word_steps >= self.max_steps:
            raise ValueError(
                f"word_steps={self.word_steps} leaves none of max_steps={self.max_steps} to the language model"
                ": lower it"
            )
        if self.identify_rows == 1:
            raise ValueError("identify_rows=1: the control takes the prefix of another row; give 0 or at least 2")
        return self

    _unnamed: ClassVar[frozenset[str]] = RunConfig._unnamed | {
        "eval_rows",
        "eval_batch_size",
        "identify_rows",
        "identify_wordings",
    }

    @property
    def evaluation_settings(self) -> dict[str, int | None]:
        """What an evaluation's figures depend on beside the run; how many rows are scored at once is not of it."""
        return {key: getattr(self, key) for key in ("eval_rows", "identify_rows", "identify_wordings")}

    @property
    def subject(self) -> str:
        bottleneck = "vae" if self.adapter.use_vae_adapter else "prefix"
        return f"describe-{Path(self.checkpoint).name}-{bottleneck}-{self.latents}"


IDENTITY = {
    *("latents", "speaker", "adapter", "latent_rows", "word_steps", "word_batch_size", "word_weight", "seed"),
    *("global_batch_size", "optim"),
}
