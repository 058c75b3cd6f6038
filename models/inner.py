"""What lies inside the ACT wrapper: embeddings in, latents round and round, answer and halting heads out.

An architecture adds its levels and one method, `cycle`: how the latents change in one H-cycle. The latents are the
fields ``z_*`` of its carry dataclass; each is reset to a fixed random vector ``*_init``, the same at all positions.
Gradients flow through the last cycle only (TRM paper, section 2.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models.act import ACTConfig
from models.layers import (
    Block,
    CastedEmbedding,
    CastedLinear,
    CosSin,
    ReasoningModule,
    RotaryEmbedding,
    trunc_normal_init_,
)
from models.sparse_embedding import CastedSparseEmbedding
from models.trajectory import HCycle


def last_with_gradients(cycle: Callable[[Any], Any], carry: Any, cycles: int) -> Any:
    """The carry after so many cycles, of which only the last is differentiated."""
    with torch.no_grad():
        for _ in range(cycles - 1):
            carry = cycle(carry)
    return cycle(carry)


class RecursiveInner(nn.Module):
    """Embeddings, heads and the recursion's outer loop; see the module docstring for what a subclass adds."""

    carry_class: ClassVar[type]
    fixed_x: ClassVar[bool] = True  # whether x is the same at all ACT steps of a puzzle

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        hidden, dtype = config.hidden_size, config.dtype
        self.embed_scale = hidden**0.5

        self.embed_tokens = CastedEmbedding(config.vocab_size, hidden, init_std=1 / self.embed_scale, cast_to=dtype)
        self.lm_head = CastedLinear(hidden, config.vocab_size, bias=False)
        self.q_head = CastedLinear(hidden, 2, bias=True)
        if config.puzzle_emb_ndim > 0:
            # Zero at the start: an unseen puzzle says nothing.
            self.puzzle_emb = CastedSparseEmbedding(
                config.num_puzzle_identifiers, config.puzzle_emb_ndim, init_std=0, cast_to=dtype
            )
        self.rotary: RotaryEmbedding | None = None
        if config.pos_encodings == "rope":
            self.rotary = RotaryEmbedding(hidden // config.num_heads, config.latent_length, config.rope_theta)
        elif config.pos_encodings == "learned":
            self.embed_pos = CastedEmbedding(config.latent_length, hidden, init_std=1 / self.embed_scale, cast_to=dtype)

        for name in self.latent_names():
            self.register_buffer(self.init_name(name), trunc_normal_init_(torch.empty(hidden), std=1).to(dtype))
        with torch.no_grad():
            # Starts at "not solved" with confidence, which bootstraps the halting loss.
            self.q_head.weight.zero_()
            self.q_head.bias.fill_(-5)  # type: ignore[union-attr]

    def build_level(self, num_layers: int, length: int | None = None) -> ReasoningModule:
        """Blocks over latents of `length` positions, `latent_length` unless given."""
        config: ACTConfig = self.config
        mlp_length = (length or config.latent_length) if config.mlp_t else None
        kernels = config.find_kernels(length)
        level = ReasoningModule(
            [
                Block(
                    config.hidden_size,
                    config.num_heads,
                    config.expansion,
                    config.rms_norm_eps,
                    mlp_length,
                    kernels,
                )
                for _ in range(num_layers)
            ]
        )
        return level.use_fp8_passes() if config.fp8_passes else level

    @classmethod
    def latent_names(cls) -> list[str]:
        return [field.name for field in fields(cls.carry_class)]

    @staticmethod
    def init_name(latent: str) -> str:
        """``z_H`` is reset to the buffer ``H_init``."""
        return f"{latent.removeprefix('z_')}_init"

    def empty_carry(self, batch_size: int) -> Any:
        """Fresh latents, each [batch_size, latent_length, hidden_size] in the forward dtype."""
        shape = (batch_size, self.config.latent_length, self.config.hidden_size)
        return self.carry_class(*(getattr(self, self.init_name(name)).expand(shape) for name in self.latent_names()))

    def reset_carry(self, reset_flag: Tensor, carry: Any) -> Any:
        """Latents of the rows in `reset_flag` bool [batch] back to their initial values."""
        flag = reset_flag.view(-1, 1, 1)
        return self.carry_class(
            *(torch.where(flag, getattr(self, self.init_name(n)), getattr(carry, n)) for n in self.latent_names())
        )

    def input_embeddings(self, inputs: Tensor, puzzle_identifiers: Tensor) -> Tensor:
        """[batch, latent_length, hidden_size]: the puzzle's tokens, then one for each cell."""
        x = self.embed_tokens(inputs)
        if self.config.puzzle_tokens > 0:
            width = self.config.puzzle_tokens * self.config.hidden_size
            puzzle = self.puzzle_emb(puzzle_identifiers) if self.config.puzzle_emb_ndim > 0 else x.new_zeros(len(x), 0)
            # The table fills the first tokens only; those left at zero serve the network as scratch space.
            puzzle = nn.functional.pad(puzzle, (0, width - self.config.puzzle_emb_ndim))
            x = torch.cat((puzzle.view(-1, self.config.puzzle_tokens, self.config.hidden_size), x), dim=-2)
        if self.config.pos_encodings == "learned":
            # Keeps the variance of the sum at that of one term.
            x = 0.707106781 * (x + self.embed_pos.embedding_weight.to(x.dtype))
        return self.embed_scale * x

    def forward(
        self, carry: Any, batch: dict[str, Tensor], all_h_cycles: list[HCycle] | None = None
    ) -> tuple[Any, dict[str, Tensor]]:
        """One deep-supervision step; its H-cycles are appended to `all_h_cycles` where that is given.

        Returns the detached latents and what the heads made of them: that of `read_out` and of `prepare`.
        """
        carry, x, outputs = self.prepare(carry, batch)
        cos_sin = None if self.rotary is None else self.rotary()
        carry = self.recur(carry, x, cos_sin, all_h_cycles)
        outputs = outputs | self.read_out(carry)
        return replace(carry, **{name: value.detach() for name, value in vars(carry).items()}), outputs

    def prepare(self, carry: Any, batch: dict[str, Tensor]) -> tuple[Any, Tensor, dict[str, Tensor]]:
        """What comes before the recursion: the carry to start from, x [batch, latent_length, hidden_size], which every
        cycle reads, and outputs of an architecture's own."""
        return carry, self.input_embeddings(batch["inputs"], batch["puzzle_identifiers"]), {}

    def read_out(self, carry: Any) -> dict[str, Tensor]:
        """What the heads make of the latents: ``logits`` [batch, seq_len, vocab_size] in the forward dtype, and
        ``q_halt_logits`` and ``q_continue_logits`` [batch] in fp32."""
        answer = self.answer(carry)
        logits = self.lm_head(answer)[:, self.config.puzzle_tokens :]
        # fp32 whatever the forward dtype: half-precision halt logits have been seen to drift into NaN.
        q_halt, q_continue = self.q_head(answer[:, 0].to(torch.float32)).unbind(-1)
        return {"logits": logits, "q_halt_logits": q_halt, "q_continue_logits": q_continue}

    def recur(self, carry: Any, x: Tensor, cos_sin: CosSin | None, all_h_cycles: list[HCycle] | None = None) -> Any:
        """All H-cycles, the last one with gradients; each is appended to `all_h_cycles` where that is given."""
        embeddings = x.detach()

        def cycle(carry: Any) -> Any:
            if all_h_cycles is None:
                return self.cycle(carry, x, cos_sin)
            z_L_list: list[Tensor] = []
            carry = self.cycle(carry, x, cos_sin, z_L_list)
            all_h_cycles.append({"z_L_list": z_L_list, "z_H": carry.z_H.detach(), "input_embeddings": embeddings})
            return carry

        return last_with_gradients(cycle, carry, self.config.H_cycles)

    def cycle(self, *args: Any, **kwargs: Any) -> Any:
        """``cycle(carry, x, cos_sin)``: the latents after one H-cycle on the input embeddings `x`.

        An architecture with z_H and z_L takes a fourth argument, to which it appends every new z_L, detached.
        """
        raise TypeError(f"{type(self).__name__} does not define how its latents change in a cycle")

    def answer(self, carry: Any) -> Tensor:
        """The latent that the heads read."""
        return carry.z_H
