"""Adaptive computation time: the one wrapper every architecture shares.

A call advances each row of the batch by one deep-supervision step. The carry persists over calls: rows that have
halted are reset and take the next puzzle from the batch, the others go on with the puzzle they hold, and the batch's
row for them is not used (TRM paper, section 2.4; HRM paper, "Adaptive computational time").

    carry = model.initial_carry(batch)              # every row halted, so the first call takes the whole batch
    carry, outputs = model(carry=carry, batch=batch)
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from models.kernels import LONGEST_MIX, Kernels, find
from models.sparse_embedding import CastedSparseEmbedding
from models.trajectory import HCycle, check_recordable, make_trajectory

# Logits [batch, length, classes] and labels [batch, length] to the loss of every position.
TokenLoss = Callable[[Tensor, Tensor], Tensor]


class ACTConfig(BaseModel):
    """What every architecture is configured with; unknown keys are refused. The first four come from the data."""

    model_config = ConfigDict(extra="forbid")

    batch_size: int = Field(gt=0)
    seq_len: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    num_puzzle_identifiers: int = Field(gt=0)

    hidden_size: int = Field(512, gt=0)
    num_heads: int = Field(8, gt=0)
    expansion: float = Field(4, gt=0)
    pos_encodings: Literal["rope", "learned", "none"] = "rope"
    rope_theta: float = Field(10000.0, gt=0)
    rms_norm_eps: float = Field(1e-5, gt=0)
    mlp_t: bool = False  # mix tokens with an MLP over positions instead of attention

    puzzle_emb_ndim: int = Field(0, ge=0)  # 0: no puzzle embedding
    puzzle_emb_len: int = Field(0, ge=0)  # tokens it fills; 0: as many as its numbers need

    halt_max_steps: int = Field(16, gt=0)
    halt_exploration_prob: float = Field(0.1, ge=0, le=1)
    no_ACT_continue: bool = (
        True  # halt on q_halt > 0; otherwise on q_halt > q_continue, which needs a second pass to train
    )

    forward_dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"
    kernels: Literal["auto", "torch", "triton"] = "torch"  # torch: the plain path; see models.kernels
    fp8_passes: bool = False  # products of training's passes without gradients in fp8, where no kernel has them

    # Whether attention may be narrower than the hidden state, as where 12 heads share 512.
    uneven_heads: ClassVar[bool] = False
    # Whether training has passes without gradients.
    passes_without_gradients: ClassVar[bool] = True
    # Whether q_continue is trained where `no_ACT_continue` is false.
    trains_q_continue: ClassVar[bool] = True

    @model_validator(mode="after")
    def _check_heads(self) -> ACTConfig:
        if self.hidden_size % self.num_heads and not (self.uneven_heads and self.hidden_size > self.num_heads):
            raise ValueError(
                f"arch.hidden_size={self.hidden_size} is not a multiple of arch.num_heads={self.num_heads}: "
                "choose heads that divide it"
            )
        if self.pos_encodings == "rope" and not self.mlp_t and (self.hidden_size // self.num_heads) % 2:
            raise ValueError(
                f"arch.hidden_size={self.hidden_size} over arch.num_heads={self.num_heads} gives an odd head size, "
                "which rope cannot rotate; use arch.pos_encodings=learned or another number of heads"
            )
        return self

    @model_validator(mode="after")
    def _check_kernels(self) -> ACTConfig:
        if self.kernels == "triton" and not self.mlp_t:
            raise ValueError("arch.kernels=triton has a kernel for arch.mlp_t=true only: leave it out")
        if self.kernels == "triton" and self.latent_length > LONGEST_MIX:
            raise ValueError(
                f"arch.kernels=triton mixes {LONGEST_MIX} positions at most and there are {self.latent_length}: "
                "leave it out"
            )
        return self

    @model_validator(mode="after")
    def _check_fp8(self) -> ACTConfig:
        if self.fp8_passes and not self.passes_without_gradients:
            raise ValueError("arch.fp8_passes=true has no meaning here, where all passes have gradients: leave it out")
        if self.fp8_passes and self.forward_dtype != "bfloat16":
            raise ValueError(
                f"arch.fp8_passes=true is for arch.forward_dtype=bfloat16, and this is {self.forward_dtype}: "
                "leave it out"
            )
        return self

    @model_validator(mode="after")
    def _check_puzzle_embedding(self) -> ACTConfig:
        room = self.puzzle_tokens * self.hidden_size
        if self.puzzle_emb_ndim > room:
            raise ValueError(
                f"puzzle_emb_ndim={self.puzzle_emb_ndim} does not fit the {room} numbers of "
                f"puzzle_emb_len={self.puzzle_emb_len} tokens; use a longer one, or 0 for as many as it needs"
            )
        return self

    @property
    def puzzle_tokens(self) -> int:
        """Latent positions in front of the grid's cells: none without a puzzle embedding."""
        return 0 if self.puzzle_emb_ndim == 0 else self.puzzle_emb_len or -(-self.puzzle_emb_ndim // self.hidden_size)

    @property
    def latent_length(self) -> int:
        """Positions of every latent: 16 + 900 = 916 on ARC."""
        return self.puzzle_tokens + self.seq_len

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.forward_dtype)

    def find_kernels(self, length: int | None = None) -> Kernels:
        """What takes the place of the plain path's parts on the current GPU, for `latent_length` positions unless a
        `length` is given."""
        shape = {"length": length or self.latent_length, "hidden_size": self.hidden_size, "num_heads": self.num_heads}
        return find(self.kernels, self.dtype, **shape, mlp_t=self.mlp_t)


@dataclass
class ACTCarry:
    """State between calls; dimension 0 of every tensor is the batch slot.

    `inner_carry`: the latents; `steps` int32 [batch]; `halted` bool [batch]; `current_data`: the rows being solved.
    """

    inner_carry: Any
    steps: Tensor
    halted: Tensor
    current_data: dict[str, Tensor]

    def named_tensors(self) -> dict[str, Tensor]:
        """Every tensor under a name of its own."""
        return {
            "steps": self.steps,
            "halted": self.halted,
            **{f"latent.{name}": value for name, value in vars(self.inner_carry).items()},
            **{f"data.{name}": value for name, value in self.current_data.items()},
        }

    def clone(self) -> Self:
        """The same on memory of its own."""
        latents = {name: value.clone() for name, value in vars(self.inner_carry).items()}
        data = {name: value.clone() for name, value in self.current_data.items()}
        return type(self)(type(self.inner_carry)(**latents), self.steps.clone(), self.halted.clone(), data)


class ACTModel(nn.Module):
    """Carry, data swapping, halting. An architecture names its `config_class` and `inner_class`."""

    config_class: ClassVar[type[ACTConfig]]
    inner_class: ClassVar[type[nn.Module]]
    carry_class: ClassVar[type[ACTCarry]] = ACTCarry

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.config = self.config_class(**config)
        self.inner: Any = self.inner_class(self.config)

    @property
    def puzzle_emb(self) -> CastedSparseEmbedding | None:
        """The puzzle table, or None with ``puzzle_emb_ndim=0``."""
        return getattr(self.inner, "puzzle_emb", None)

    def initial_carry(self, batch: dict[str, Tensor]) -> ACTCarry:
        """A carry in which every row has halted, so that the next call starts on `batch`."""
        inputs = batch["inputs"]
        rows = inputs.shape[0]
        return self.carry_class(
            inner_carry=self.inner.empty_carry(rows),
            steps=torch.zeros(rows, dtype=torch.int32, device=inputs.device),
            halted=torch.ones(rows, dtype=torch.bool, device=inputs.device),
            current_data={key: torch.zeros_like(value) for key, value in batch.items()},
        )

    def forward(
        self,
        carry: ACTCarry,
        batch: dict[str, Tensor],
        min_halt_steps: Tensor | None = None,
        store_diffusion_trajectory: bool | Collection[int] = False,
    ) -> tuple[ACTCarry, dict[str, Any]]:
        """One deep-supervision step.

        `min_halt_steps` int32 [batch]: in training no row halts earlier; drawn from the global generator when absent
        (the trainer passes its own, a function of the seed, the step and the slot). In evaluation every row runs
        exactly `halt_max_steps`.

        `store_diffusion_trajectory`: true, or the ACT steps of interest; ``outputs["trajectory"]`` is then a
        `models.trajectory.Trajectory` of the whole batch, and its ``rows`` says which rows are at such a step.
        ValueError for an architecture whose latents are not z_H and z_L.
        """
        all_h_cycles: list[HCycle] | None = None
        if store_diffusion_trajectory is not False:
            check_recordable(self)
            all_h_cycles = []
        initial = self.inner.reset_carry(carry.halted, carry.inner_carry)
        data = {
            key: torch.where(carry.halted.view(-1, *[1] * (held.ndim - 1)), batch[key], held)
            for key, held in carry.current_data.items()
        }
        outputs: dict[str, Any]
        inner_carry, outputs = self.inner(initial, data, all_h_cycles)

        with torch.no_grad():
            steps = torch.where(carry.halted, 0, carry.steps) + 1
            last = steps >= self.config.halt_max_steps
            halted = last
            if all_h_cycles is not None:
                outputs["trajectory"] = make_trajectory(initial, all_h_cycles, steps, store_diffusion_trajectory)
            if self.training and self.config.halt_max_steps > 1:
                if min_halt_steps is None:
                    min_halt_steps = self.explore(torch.rand(2, len(steps), device=steps.device))
                halted = last | (self.wants_to_halt(outputs) & (steps >= min_halt_steps))
                if not self.config.no_ACT_continue and self.config.trains_q_continue:
                    _, after = self.inner(inner_carry, data)
                    next_halt = after["q_halt_logits"]
                    best = torch.where(last, next_halt, torch.maximum(next_halt, after["q_continue_logits"]))
                    outputs["target_q_continue"] = torch.sigmoid(best)
        return self.carry_class(inner_carry, steps, halted, data), outputs

    def auxiliary(
        self, outputs: dict[str, Tensor], labels: Tensor, loss_fn: TokenLoss
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """What an architecture adds to the loss for answers of its own among the `outputs`, summed over the rows, and
        its metrics, named ``..._loss`` and summed over the rows too; labels [batch, seq_len]."""
        return 0.0, {}

    def wants_to_halt(self, outputs: dict[str, Tensor]) -> Tensor:
        """Bool [batch]: the rows whose halt head says that they are done."""
        threshold = 0 if self.config.no_ACT_continue else outputs["q_continue_logits"]
        return outputs["q_halt_logits"] > threshold

    def explore(self, uniform: Tensor) -> Tensor:
        """Fewest steps before each row may halt, int32 [batch], from two uniforms [2, batch] in [0, 1).

        With probability `halt_exploration_prob` it is uniform over 2 .. `halt_max_steps` inclusive, otherwise 0.
        """
        choices = self.config.halt_max_steps - 1
        steps = 2 + (uniform[1] * choices).to(torch.int32).clamp_max(choices - 1)
        return torch.where(uniform[0] < self.config.halt_exploration_prob, steps, 0)
