"""From a language model's states to latents of a recursive model: compress, spread over positions, project.

Text must be able to mean something else at every position ("paint the top row"), so position and text meet *before*
a nonlinearity: a map that only adds them would give every cell the same vector. With the cross-attention bridge every
position, with what stands there, asks the text's tokens for what concerns it; without it all positions get the mean
of the tokens.

Usage: ``latents = TextToLatentAdapter(config)(states, mask, places)``
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from hybrid_pipeline.llm import masked_mean
from models.layers import CastedLinear, trunc_normal_init_


class TextAdapterConfig(BaseModel):
    """`text_size` is the language model's width; `outputs` counts the latents made for each place."""

    model_config = ConfigDict(extra="forbid")

    text_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    places: int = Field(gt=0)
    outputs: int = Field(1, gt=0)
    bottleneck: int = Field(256, gt=0)
    num_heads: int = Field(4, gt=0)
    cross_attention: bool = True
    reads_cells: bool = True  # whether something stands at each place, which is then part of the question

    @model_validator(mode="after")
    def _check_heads(self) -> TextAdapterConfig:
        if self.bottleneck % self.num_heads:
            raise ValueError(
                f"adapter.bottleneck={self.bottleneck} is not a multiple of adapter.num_heads={self.num_heads}"
            )
        return self


class CrossAttentionBridge(nn.Module):
    """Places [batch, places, size] ask tokens [batch, tokens, size]; one pre-norm layer of attention and MLP."""

    def __init__(self, size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm_places, self.norm_mlp = nn.LayerNorm(size), nn.LayerNorm(size)
        self.q_proj, self.o_proj = CastedLinear(size, size, bias=False), CastedLinear(size, size, bias=False)
        self.kv_proj = CastedLinear(size, 2 * size, bias=False)
        self.mlp = nn.Sequential(CastedLinear(size, 2 * size, bias=True), nn.GELU(), CastedLinear(2 * size, size, True))

    def forward(self, places: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        key, value = self.kv_proj(tokens).chunk(2, dim=-1)
        query = self.q_proj(self.norm_places(places))
        # A row without text would have nothing to attend to; what it then finds is thrown away by the adapter.
        allowed = (mask | ~mask.any(1, keepdim=True))[:, None, None, :]
        found = F.scaled_dot_product_attention(heads(query), heads(key), heads(value), attn_mask=allowed)
        places = places + self.o_proj(found.transpose(1, 2).flatten(2))
        return places + self.mlp(self.norm_mlp(places))


class TextToLatentAdapter(nn.Module):
    """States fp32 [batch, tokens, text_size] and their mask to latents [batch, places, outputs * hidden_size].

    Rows without a token get zeros: no text says nothing.
    """

    def __init__(self, config: TextAdapterConfig):
        super().__init__()
        self.config = config
        size = config.bottleneck
        self.compress = nn.Sequential(CastedLinear(config.text_size, size, bias=True), nn.GELU(), nn.LayerNorm(size))
        self.position_embeddings = nn.Parameter(trunc_normal_init_(torch.empty(config.places, size), std=1.0))
        if config.reads_cells:
            self.cell = CastedLinear(config.hidden_size, size, bias=False)
        if config.cross_attention:
            self.bridge = CrossAttentionBridge(size, config.num_heads)
        self.mix = nn.Sequential(nn.LayerNorm(size), CastedLinear(size, 2 * size, bias=True), nn.GELU())
        self.to_trm = CastedLinear(2 * size, config.outputs * config.hidden_size, bias=False)

    def forward(self, states: Tensor, mask: Tensor, cells: Tensor | None = None, places: slice = slice(None)) -> Tensor:
        """`cells` [batch, places, hidden_size]: what stands at each place, if the adapter `reads_cells`.

        `places`: only some of them, whose cells and latents then are the only ones.
        """
        # The mean comes as a token of its own: sentences of one meaning are nearest in it.
        states = torch.cat((masked_mean(states, mask).unsqueeze(1), states), dim=1)
        mask = torch.cat((mask.any(1, keepdim=True), mask), dim=1)
        tokens = self.compress(states) * mask.unsqueeze(-1)
        asking = self.position_embeddings[places].expand(len(states), -1, -1)
        if cells is not None:
            asking = asking + self.cell(cells.float())
        if self.config.cross_attention:
            asking = self.bridge(asking, tokens, mask)
        else:
            asking = asking + masked_mean(tokens, mask).unsqueeze(1)
        return self.to_trm(self.mix(asking)) * mask.any(1).to(tokens.dtype).view(-1, 1, 1)


class LevelTextToLatentAdapter(TextToLatentAdapter):
    """One adapter for all levels of a coarse-to-fine model: maps are shared, and every cell of every level has a
    position of its own, so that a block of cells may be told something else than its cells are."""

    def __init__(self, config: TextAdapterConfig, cells: Sequence[int]):
        """`cells`: how many each level has, from coarse to fine; ValueError unless they are the `places` together."""
        if sum(cells) != config.places:
            raise ValueError(f"{list(cells)} cells are not the adapter's {config.places} places")
        super().__init__(config)
        ends = list(accumulate(cells))
        self.levels = [slice(end - count, end) for end, count in zip(ends, cells, strict=True)]

    def at_level(self, level: int, states: Tensor, mask: Tensor, cells: Tensor | None = None) -> Tensor:
        """Latents [batch, cells of the level, outputs * hidden_size]; IndexError for a level that is not there."""
        return self(states, mask, cells, self.levels[level])
