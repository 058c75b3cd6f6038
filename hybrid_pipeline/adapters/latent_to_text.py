"""From a recursive model's latents to a soft prefix: tokens of their own in a frozen language model's embedding space.

The prefix is trained through the language model by teacher forcing: the loss is that of a description's tokens after
the prefix, and its gradient comes back through the frozen weights. Generating under no_grad would train nothing.

Every latent is read where it stands, then the cells are pooled: by attention, whose heads choose cells by what is in
them, or by their mean. PAD cells are in neither.

Usage: ``prefix, kl = LatentToTextAdapter(config)(z_H, mask)``
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from hybrid_pipeline.adapters.vae_adapter import VAEAdapter
from hybrid_pipeline.llm import masked_mean
from models.layers import CastedLinear, rms_norm, trunc_normal_init_


class LatentAdapterConfig(BaseModel):
    """`text_size` is the language model's width, `text_scale` the root mean square of its token embeddings."""

    model_config = ConfigDict(extra="forbid")

    hidden_size: int = Field(gt=0)
    places: int = Field(gt=0)
    text_size: int = Field(gt=0)
    text_scale: float = Field(gt=0)
    prefix_tokens: int = Field(4, gt=0)
    bottleneck: int = Field(256, gt=0)
    use_attention_pooling: bool = True
    pooling_heads: int = Field(8, gt=0)
    use_vae_adapter: bool = False
    vae_size: int = Field(32, gt=0)

    @model_validator(mode="after")
    def _check_heads(self) -> LatentAdapterConfig:
        if self.use_attention_pooling and self.bottleneck % self.pooling_heads:
            raise ValueError(
                f"adapter.bottleneck={self.bottleneck} is not a multiple of adapter.pooling_heads={self.pooling_heads}"
            )
        return self


class AttentionPooling(nn.Module):
    """Cells [batch, places, size] and their mask to one vector [batch, size]; zero where a row has no cell.

    Each head has an equal share of the channels and weights of its own over the cells: a softmax of
    ``w tanh(W cell)``, as in Bahdanau et al. 2015 with a constant question.
    """

    def __init__(self, size: int, heads: int):
        super().__init__()
        self.heads = heads
        self.score = nn.Sequential(
            CastedLinear(size, size // 2, bias=True), nn.Tanh(), CastedLinear(size // 2, heads, bias=False)
        )

    def forward(self, cells: Tensor, mask: Tensor) -> Tensor:
        # A finite floor: a row without any cell must not become NaN. What it then pools is thrown away.
        scores = self.score(cells).float().masked_fill(~mask.unsqueeze(-1), torch.finfo(torch.float32).min)
        weights = scores.softmax(dim=1).unsqueeze(-1)
        pooled = (weights * cells.float().unflatten(-1, (self.heads, -1))).sum(1).flatten(1)
        return pooled * mask.any(1, keepdim=True)


class LatentToTextAdapter(nn.Module):
    """z [batch, places, hidden_size] and a mask, true where a latent is read, to a prefix fp32 [batch, prefix_tokens,
    text_size], and the KL of its bottleneck, fp32 [batch, vae_size], or None without one."""

    def __init__(self, config: LatentAdapterConfig):
        super().__init__()
        self.config = config
        size = config.bottleneck
        self.cell = CastedLinear(config.hidden_size, size, bias=True)
        self.position_embeddings = nn.Parameter(trunc_normal_init_(torch.empty(config.places, size), std=0.5))
        self.mlp = nn.Sequential(nn.GELU(), CastedLinear(size, size, bias=True), nn.GELU())
        self.pool = AttentionPooling(size, config.pooling_heads) if config.use_attention_pooling else None
        self.mix = nn.Sequential(nn.LayerNorm(size), CastedLinear(size, 2 * size, bias=True), nn.GELU())
        self.vae = VAEAdapter(2 * size, config.vae_size) if config.use_vae_adapter else None
        if self.vae is not None:
            self.from_vae = nn.Sequential(CastedLinear(config.vae_size, 2 * size, bias=True), nn.GELU())
        self.to_prefix = CastedLinear(2 * size, config.prefix_tokens * config.text_size, bias=True)
        # Prefix tokens begin as long as the language model's own, and learn how loud to be.
        self.gain = nn.Parameter(torch.full((config.prefix_tokens, 1), config.text_scale))

    def forward(self, z: Tensor, mask: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """`noise` [batch, vae_size]: what the bottleneck samples with; without it, its mean."""
        cells = self.mlp(self.cell(rms_norm(z.float(), 1e-5)) + self.position_embeddings)
        pooled = masked_mean(cells, mask) if self.pool is None else self.pool(cells, mask)
        found, kl = self.mix(pooled), None
        if self.vae is not None:
            sample, kl = self.vae(found, noise)
            found = self.from_vae(sample)
        tokens = self.to_prefix(found).unflatten(-1, (self.config.prefix_tokens, self.config.text_size))
        return rms_norm(tokens, 1e-6) * self.gain, kl
