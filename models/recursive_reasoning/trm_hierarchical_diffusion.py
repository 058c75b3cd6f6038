"""Coarse to fine: TRM's recursion on grids of several resolutions, 3x3, then 6x6, then 30x30 cells.

Deterministic recursion: there is no noise, and the name, which is older than the code, promises too much. Every ACT
step goes once through the levels. A coarse level reads what the finest one would read, z_H + x, averaged over the cells
that are not PAD (a learned residual on top), and the z_H of the level above it, spread over its cells (a learned map);
it runs the H-cycles of TRM on latents of its own and answers with the majority token of each block, "mixed" or PAD. The
finest level is TRM with the z_H above it added to its x. Puzzle tokens are at every level.

A coarse level that says that its answer is right, after all coarser ones did, is frozen until the row takes the next
puzzle; finer ones go on. The row itself halts with the finest level, as in TRM. Freezing saves no work in a batch.

All levels share TRM's network unless ``tie_levels=false``. An MLP over positions has weights for each number of
positions, so with ``mlp_t`` levels share the MLPs over channels only. With a single level this is TRM, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationInfo, model_validator
from torch import Tensor, nn

from models.act import ACTModel, TokenLoss
from models.grid_levels import (
    PAD,
    POSITION_FEATURES,
    Grid,
    cell_centres,
    check_levels,
    coarse_targets,
    default_levels,
    name_of,
    pooled,
    position_features,
    spread,
)
from models.inner import last_with_gradients
from models.layers import CastedLinear, ReasoningModule, RotaryEmbedding
from models.losses import IGNORE_LABEL_ID, halting_loss
from models.recursive_reasoning.trm import (
    TinyRecursiveReasoningModel_ACTV1_Inner,
    TinyRecursiveReasoningModel_ACTV1Config,
    TinyRecursiveReasoningModel_ACTV1InnerCarry,
    refine,
)

Side = Annotated[int, Field(gt=0)]


class TRMHierarchicalDiffusionConfig(TinyRecursiveReasoningModel_ACTV1Config):
    # Rows and columns of every level, from coarse to fine; None: `default_levels` of the data's grid.
    levels: list[Annotated[list[Side], Field(min_length=2, max_length=2)]] | None = Field(None, min_length=1)
    tie_levels: bool = True
    coarse_loss_weight: float = Field(0.5, ge=0)  # of each coarse level's loss, beside 1 for the finest
    coarse_halting: bool = True  # false: coarse levels go on for as long as their row does

    @model_validator(mode="after")
    def _check_levels(self, info: ValidationInfo) -> TRMHierarchicalDiffusionConfig:
        before_data = bool((info.context or {}).get("before_data"))
        if not before_data or self.levels is not None:
            check_levels(self.grids, None if before_data else self.seq_len)
        return self

    @property
    def grids(self) -> list[Grid]:
        """All levels, the finest last."""
        if self.levels is None:
            return default_levels(self.seq_len)
        return [(rows, columns) for rows, columns in self.levels]


@dataclass
class HierarchicalDiffusionCarry(TinyRecursiveReasoningModel_ACTV1InnerCarry):
    """The finest level's latents, and those of all coarse levels one after the other, each [batch, positions,
    hidden_size]; `coarse_halted` bool [batch, coarse levels]: those that are frozen."""

    coarse_z_H: Tensor
    coarse_z_L: Tensor
    coarse_halted: Tensor


class CoarseLevel(nn.Module):
    """What a coarse level has of its own: where its tokens stand, its q-head, its networks unless it shares them."""

    position: Tensor
    L_level: ReasoningModule
    H_level: ReasoningModule

    def __init__(self, inner: TRMHierarchicalDiffusion_Inner, grid: Grid):
        super().__init__()
        config, finest = inner.config, inner.grids[-1]
        self.grid = grid
        self.length = config.puzzle_tokens + grid[0] * grid[1]
        self.register_buffer("position", position_features(grid, finest), persistent=False)
        self.rotary = None
        if config.pos_encodings == "rope":
            # A coarse cell stands in the middle of its block, on the scale of the finest level.
            cells = cell_centres(grid, finest) @ torch.tensor([float(finest[1]), 1.0])
            tokens = torch.arange(config.puzzle_tokens, dtype=torch.float32)
            places = torch.cat((tokens, config.puzzle_tokens + cells))
            size = config.hidden_size // config.num_heads
            self.rotary = RotaryEmbedding(size, self.length, config.rope_theta, places)
        self.q_head = CastedLinear(config.hidden_size, 1, bias=True)
        with torch.no_grad():  # as TRM's: not right yet, with confidence
            self.q_head.weight.zero_()
            self.q_head.bias.fill_(-5)  # type: ignore[union-attr]
        self.own_networks = not config.tie_levels or config.mlp_t
        if self.own_networks:
            self.L_level = inner.build_level(config.L_layers, self.length)
            if config.H_layers > 0:
                self.H_level = inner.build_level(config.H_layers, self.length)
        if self.own_networks and config.tie_levels:
            _share_channel_mlps(self.L_level, inner.L_level)
            if config.H_layers > 0:
                _share_channel_mlps(self.H_level, inner.H_level)

    def networks(self, inner: TRMHierarchicalDiffusion_Inner) -> tuple[ReasoningModule, ReasoningModule]:
        """As `networks` of the finest level."""
        if not self.own_networks:
            return inner.networks
        return self.L_level, self.H_level if inner.config.H_layers > 0 else self.L_level


def _share_channel_mlps(level: ReasoningModule, of: ReasoningModule) -> None:
    """Let `level` use the MLPs over channels `of` another, which alone has them among its parameters."""
    for own, shared in zip(level.layers, of.layers, strict=True):
        del own.mlp
        own.__dict__["mlp"] = shared.mlp


class TRMHierarchicalDiffusion_Inner(TinyRecursiveReasoningModel_ACTV1_Inner):
    fixed_x = False  # what coarse levels say changes
    H_init: Tensor
    L_init: Tensor
    position: Tensor

    def __init__(self, config: TRMHierarchicalDiffusionConfig):
        super().__init__(config)
        self.grids = config.grids
        self.coarse: Any = nn.ModuleList()  # of CoarseLevel
        if len(self.grids) == 1:
            return
        hidden, finest = config.hidden_size, self.grids[-1]
        self.coarse.extend(CoarseLevel(self, grid) for grid in self.grids[:-1])
        self.register_buffer("position", position_features(finest, finest), persistent=False)
        self.up, self.down = (CastedLinear(hidden, hidden, bias=False) for _ in range(2))
        self.position_context = CastedLinear(POSITION_FEATURES, hidden, bias=False)
        self.coarse_head = CastedLinear(hidden, config.vocab_size + 1, bias=False)  # PAD and tokens, then "mixed"
        with torch.no_grad():  # levels begin as means and as TRM, and learn what to tell each other
            for linear in (self.up, self.down, self.position_context):
                linear.weight.zero_()

    @property
    def lengths(self) -> list[int]:
        """Positions of the coarse levels."""
        return [level.length for level in self.coarse]

    def empty_carry(self, batch_size: int) -> HierarchicalDiffusionCarry:
        finest = super().empty_carry(batch_size)
        shape = (batch_size, sum(self.lengths), self.config.hidden_size)
        halted = torch.zeros(batch_size, len(self.coarse), dtype=torch.bool, device=finest.z_H.device)
        return HierarchicalDiffusionCarry(
            **vars(finest),
            coarse_z_H=self.H_init.expand(shape),
            coarse_z_L=self.L_init.expand(shape),
            coarse_halted=halted,
        )

    def reset_carry(self, reset_flag: Tensor, carry: HierarchicalDiffusionCarry) -> HierarchicalDiffusionCarry:
        flag = reset_flag.view(-1, 1, 1)
        return HierarchicalDiffusionCarry(
            **vars(super().reset_carry(reset_flag, carry)),
            coarse_z_H=torch.where(flag, self.H_init, carry.coarse_z_H),
            coarse_z_L=torch.where(flag, self.L_init, carry.coarse_z_L),
            coarse_halted=carry.coarse_halted & ~reset_flag.view(-1, 1),
        )

    def prepare(
        self, carry: HierarchicalDiffusionCarry, batch: dict[str, Tensor]
    ) -> tuple[HierarchicalDiffusionCarry, Tensor, dict[str, Tensor]]:
        """All coarse levels, and x with what they say added.

        Outputs: ``coarse_logits`` [batch, coarse cells, vocab_size + 1] of the levels one after the other, and
        ``coarse_q_halt_logits`` fp32 [batch, coarse levels].
        """
        carry, x, outputs = super().prepare(carry, batch)
        if not self.coarse:
            return carry, x, outputs
        valid = batch["inputs"] != PAD
        z_H, z_L = (latents.split(self.lengths, dim=1) for latents in (carry.coarse_z_H, carry.coarse_z_L))
        seen, above = x + carry.z_H, None  # what the finest level would read, and the level above
        after: list[TinyRecursiveReasoningModel_ACTV1InnerCarry] = []
        logits, q_halt, halted = [], [], []
        coarser_halted = torch.ones_like(carry.coarse_halted[:, 0])
        for index, level in enumerate(self.coarse):
            frozen = carry.coarse_halted[:, index]
            injection, there = self._averaged(seen, valid, level)
            if above is not None:
                injection = injection + self._spread(after[-1].z_H, above, level.grid)
            # Contiguous as all later states of the recursion, or compilation would make graphs for these alone.
            before = TinyRecursiveReasoningModel_ACTV1InnerCarry(z_H[index].contiguous(), z_L[index].contiguous())
            after.append(self._recur_level(level, before, injection, frozen))
            cells = after[-1].z_H[:, self.config.puzzle_tokens :]
            logits.append(self.coarse_head(cells))
            q_halt.append(level.q_head(_mean_cell(cells, there)).squeeze(-1))
            coarser_halted = frozen | (coarser_halted & (q_halt[-1] > 0) & self.config.coarse_halting)
            halted.append(coarser_halted)
            above = level.grid
        x = self._in_context(x, self.position) + self._spread(after[-1].z_H, self.grids[-2], self.grids[-1])
        carry = replace(
            carry,
            coarse_z_H=torch.cat([latents.z_H for latents in after], dim=1),
            coarse_z_L=torch.cat([latents.z_L for latents in after], dim=1),
            coarse_halted=torch.stack(halted, dim=1),
        )
        own = {"coarse_logits": torch.cat(logits, dim=1), "coarse_q_halt_logits": torch.stack(q_halt, dim=1)}
        return carry, x, outputs | own

    def _averaged(self, seen: Tensor, valid: Tensor, level: CoarseLevel) -> tuple[Tensor, Tensor]:
        """The finest positions `seen` at a coarse level, and which of its cells have any that is no PAD."""
        tokens, cells = self._parted(seen)
        means, there = pooled(cells, valid, level.grid, self.grids[-1])
        means = torch.cat((tokens, means), dim=1)
        return self._in_context(means + self.down(means), level.position), there

    def _spread(self, z_H: Tensor, coarse: Grid, fine: Grid) -> Tensor:
        """What a level tells the next one, at the positions of that."""
        tokens, cells = self._parted(self.up(z_H))
        return torch.cat((tokens, spread(cells, coarse, fine)), dim=1)

    def _in_context(self, x: Tensor, position: Tensor) -> Tensor:
        """x with each cell's place in the grid and the size of its block added; puzzle tokens have none."""
        tokens, cells = self._parted(x)
        return torch.cat((tokens, cells + self.position_context(position.to(x.dtype))), dim=1)

    def _parted(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Puzzle tokens and cells."""
        return x[:, : self.config.puzzle_tokens], x[:, self.config.puzzle_tokens :]

    def _recur_level(
        self, level: CoarseLevel, before: TinyRecursiveReasoningModel_ACTV1InnerCarry, x: Tensor, frozen: Tensor
    ) -> TinyRecursiveReasoningModel_ACTV1InnerCarry:
        """All H-cycles of a coarse level, the last with gradients; rows in `frozen` bool [batch] stay as they were."""
        networks, cos_sin = level.networks(self), None if level.rotary is None else level.rotary()

        def cycle(
            carry: TinyRecursiveReasoningModel_ACTV1InnerCarry,
        ) -> TinyRecursiveReasoningModel_ACTV1InnerCarry:
            return refine(carry, x, cos_sin, networks, self.config.L_cycles)

        moved, keep = last_with_gradients(cycle, before, self.config.H_cycles), frozen.view(-1, 1, 1)
        return replace(
            before, z_H=torch.where(keep, before.z_H, moved.z_H), z_L=torch.where(keep, before.z_L, moved.z_L)
        )


def _mean_cell(cells: Tensor, there: Tensor) -> Tensor:
    """Mean of [batch, cells, D] over those `there` (bool [batch, cells]), 0 without any: fp32 [batch, D]."""
    weights = there.unsqueeze(-1).to(torch.float32)
    return (cells.to(torch.float32) * weights).sum(1) / weights.sum(1).clamp_min(1)


class TRMHierarchicalDiffusion(ACTModel):
    config: TRMHierarchicalDiffusionConfig
    config_class = TRMHierarchicalDiffusionConfig
    inner_class = TRMHierarchicalDiffusion_Inner

    def auxiliary(
        self, outputs: dict[str, Tensor], labels: Tensor, loss_fn: TokenLoss
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """`coarse_loss_weight` times, of every coarse level, the mean token loss and half the halting loss."""
        *coarse, finest = self.inner.grids
        if not coarse:
            return super().auxiliary(outputs, labels, loss_fn)
        logits = outputs["coarse_logits"].split([rows * columns for rows, columns in coarse], dim=1)
        total: Tensor | float = 0.0
        metrics = {}
        for index, grid in enumerate(coarse):
            targets = coarse_targets(labels, grid, finest, self.config.vocab_size)
            right = (logits[index].argmax(-1) == targets).all(-1)
            has_labels = targets[:, 0] != IGNORE_LABEL_ID
            lm_loss = loss_fn(logits[index], targets).mean(-1).sum()
            q_halt_loss = halting_loss(outputs["coarse_q_halt_logits"][:, index], right, has_labels)
            total = total + self.config.coarse_loss_weight * (lm_loss + 0.5 * q_halt_loss)
            metrics[f"level_{name_of(grid)}_lm_loss"] = lm_loss.detach()
            metrics[f"level_{name_of(grid)}_q_halt_loss"] = q_halt_loss.detach()
        return total, metrics
