"""The puzzle table: one learned vector for every puzzle identifier, far larger than the network that reads it.

Dense gradients for it would cost gigabytes a step. In training the looked-up rows are therefore handed to autograd
as leaf tensors and remembered; the sparse optimiser (`training.optim.SignSGD`) takes them with `take_touched`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import trunc_normal_init_


class CastedSparseEmbedding(nn.Module):
    """Look up rows of `weights` [num_embeddings, embedding_dim] fp32, a buffer and not a parameter.

    Autograd never sees the table, so it is in no dense optimiser and in no gradient all-reduce.
    """

    weights: Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int, init_std: float, cast_to: torch.dtype):
        super().__init__()
        self.cast_to = cast_to
        self.register_buffer("weights", trunc_normal_init_(torch.empty(num_embeddings, embedding_dim), init_std))
        self.touched: list[tuple[Tensor, Tensor]] = []  # identifiers and rows since `take_touched`

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [batch, embedding_dim] in `cast_to` for ids [batch] int32."""
        rows = F.embedding(ids, self.weights)
        if self.training and torch.is_grad_enabled():
            rows = rows.detach().requires_grad_()
            self.touched.append((ids, rows))
        return rows.to(self.cast_to)

    def take_touched(self) -> tuple[Tensor, Tensor]:
        """Identifiers [rows] and gradients [rows, embedding_dim] fp32 since the last call, in look-up order."""
        touched, self.touched = self.touched, []
        if not touched:
            return self.weights.new_zeros(0, dtype=torch.int32), self.weights.new_zeros(0, self.weights.shape[1])
        ids = torch.cat([ids for ids, _ in touched])
        gradients = torch.cat([torch.zeros_like(rows) if rows.grad is None else rows.grad for _, rows in touched])
        return ids, gradients
