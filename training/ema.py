"""Exponential moving average of the weights, kept beside them and lent to the model only for the length of a `with`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


def warmed_up_rate(rate: float, updates: int) -> float:
    """``min(rate, (1 + n) / (10 + n))`` after n updates: a young average does not cling to the initial weights."""
    return min(rate, (1 + updates) / (10 + updates))


class EMA:
    """``shadow <- rate * shadow + (1 - rate) * weight`` over named fp32 tensors (TRM paper, section 4.6)."""

    def __init__(self, weights: Mapping[str, Tensor], rate: float):
        self.rate = rate
        self.weights = dict(weights)
        self.shadow = {name: weight.detach().clone() for name, weight in self.weights.items()}

    @torch.no_grad()
    def reset(self) -> None:
        """Start again from the weights as they are now."""
        for name, average in self.shadow.items():
            average.copy_(self.weights[name])

    @torch.no_grad()
    def update(self, rate: float | None = None) -> None:
        """Take the weights in, at another rate than usual if one is given."""
        weight = 1 - (self.rate if rate is None else rate)
        torch._foreach_lerp_(list(self.shadow.values()), [w.detach() for w in self.weights.values()], weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model computes with the averages inside; storages are exchanged, not copied, and always given back."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for name, weight in self.weights.items():
            weight.data, self.shadow[name] = self.shadow[name], weight.data

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy saved averages in; raises KeyError for a missing name."""
        for name, average in self.shadow.items():
            average.copy_(tensors[name])
