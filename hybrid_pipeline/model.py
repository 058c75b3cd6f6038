"""A Tiny Recursive Model that listens: the states of a frozen language model enter what its recursion reads.

Where they enter decides whether they can be learned from. Only the last H-cycle of a step is differentiated, so:

``input``         added to the embedding of every cell, which all cycles read: the gradient reaches the adapter
``puzzle_slots``  in tokens before the cells, beside the puzzle's own where there are any: it does too
``carry``         as the initial z_H and z_L of a puzzle: with H_cycles > 1 the adapter lies before cycles that are not
                  differentiated and gets no gradient at all; kept as the control that it is

The text of a row is the number of a sentence whose states the model holds, so that halting and swapping rows treat it
as any other datum.

    model = HybridTRMModel(config)
    model.inner.read(states)              # TextStates of all sentences
    carry, outputs = model(carry=carry, batch={..., "texts": numbers})
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from hybrid_pipeline.adapters.text_to_latent import TextAdapterConfig, TextToLatentAdapter
from hybrid_pipeline.llm import TextStates
from models.act import ACTCarry, ACTModel
from models.recursive_reasoning.trm import (
    TinyRecursiveReasoningModel_ACTV1_Inner,
    TinyRecursiveReasoningModel_ACTV1Carry,
    TinyRecursiveReasoningModel_ACTV1Config,
    TinyRecursiveReasoningModel_ACTV1InnerCarry,
)

Injection = Literal["input", "puzzle_slots", "carry"]


class HybridTRMConfig(TinyRecursiveReasoningModel_ACTV1Config):
    """A TRM's keys, and how the text gets in. `text_size` is the language model's width."""

    text_size: int = Field(gt=0)
    injection: Injection = "input"
    text_slots: int = Field(4, gt=0)  # tokens that the text fills with injection=puzzle_slots
    bottleneck: int = Field(256, gt=0)
    bridge_heads: int = Field(4, gt=0)
    use_cross_attention_bridge: bool = True

    @property
    def puzzle_tokens(self) -> int:
        """The puzzle's tokens and after them those of the text."""
        return super().puzzle_tokens + self.slots

    @property
    def slots(self) -> int:
        return self.text_slots if self.injection == "puzzle_slots" else 0

    @property
    def adapter(self) -> TextAdapterConfig:
        places = {"input": self.seq_len, "puzzle_slots": self.text_slots, "carry": self.latent_length}
        return TextAdapterConfig(
            text_size=self.text_size,
            hidden_size=self.hidden_size,
            places=places[self.injection],
            outputs=2 if self.injection == "carry" else 1,
            bottleneck=self.bottleneck,
            num_heads=self.bridge_heads,
            cross_attention=self.use_cross_attention_bridge,
            reads_cells=self.injection == "input",
        )


class HybridTRM_Inner(TinyRecursiveReasoningModel_ACTV1_Inner):
    """The recursion of a TRM, and in front of it `text`, the adapter."""

    states: Tensor
    mask: Tensor

    def __init__(self, config: HybridTRMConfig):
        super().__init__(config)
        self.starting: Tensor | None = None  # bool [batch]: rows that were reset for this step
        self.text = self.build_adapter()
        # Not part of a checkpoint: the language model can be asked again.
        self.register_buffer("states", torch.zeros(1, 1, config.text_size), persistent=False)
        self.register_buffer("mask", torch.zeros(1, 1, dtype=torch.bool), persistent=False)

    def build_adapter(self) -> TextToLatentAdapter:
        return TextToLatentAdapter(self.config.adapter)

    def said_to_cells(self, states: Tensor, mask: Tensor, cells: Tensor) -> Tensor:
        """What is added to the embeddings of the cells [batch, seq_len, hidden_size]."""
        return self.text(states, mask, cells)

    def read(self, texts: TextStates) -> None:
        """Hold the states of all sentences that a row may name."""
        device = self.states.device
        self.states, self.mask = texts.states.to(device), texts.mask.to(device)

    def prepare(self, carry: Any, batch: dict[str, Tensor]) -> tuple[Any, Tensor, dict[str, Tensor]]:
        config = self.config
        x = self.input_embeddings(batch["inputs"], batch["puzzle_identifiers"])
        numbers = batch["texts"].long()
        states, mask = self.states[numbers], self.mask[numbers]
        if config.injection == "carry":
            return self._into_carry(carry, self.text(states, mask).to(x.dtype)), x, {}
        first = config.puzzle_tokens - config.slots
        if config.injection == "puzzle_slots":
            places = slice(first, config.puzzle_tokens)
            said = self.text(states, mask)
        else:
            places = slice(config.puzzle_tokens, None)
            said = self.said_to_cells(states, mask, x[:, places])
        parts = x[:, : places.start], x[:, places] + said.to(x.dtype), x[:, places.stop or x.shape[1] :]
        return carry, torch.cat(parts, dim=1), {}

    def _into_carry(
        self, carry: TinyRecursiveReasoningModel_ACTV1InnerCarry, said: Tensor
    ) -> TinyRecursiveReasoningModel_ACTV1InnerCarry:
        """The text on top of the initial latents of the rows that start now."""
        assert self.starting is not None, "HybridTRMModel says which rows start"
        z_H, z_L = (said * self.starting.view(-1, 1, 1)).chunk(2, dim=-1)
        return replace(carry, z_H=carry.z_H + z_H, z_L=carry.z_L + z_L)


class HybridTRMModel(ACTModel):
    """The ACT wrapper of every architecture around `HybridTRM_Inner`; batches have ``texts`` int32 [batch] too."""

    config_class = HybridTRMConfig
    inner_class = HybridTRM_Inner
    carry_class = TinyRecursiveReasoningModel_ACTV1Carry

    def forward(self, carry: ACTCarry, batch: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        self.inner.starting = carry.halted
        return super().forward(carry, batch, *args, **kwargs)
