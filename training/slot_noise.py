"""Normal noise as a function of (seed, purpose, step, slot of the global batch), drawn on the device.

Usage: ``SlotNoise(seed, purpose, device)(step, slots, (97, 512))`` is fp32 [len(slots), 97, 512].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# Numbers that one seed makes, about: many, so that launches are few; not so many that most belong to other processes.
NUMBERS = 2**24
MOST_ROWS = 64


class SlotNoise:
    """Neither a restart nor the number of processes changes what a slot is given."""

    def __init__(self, seed: int, purpose: int, device: torch.device):
        self.key, self.device = [seed, purpose], device
        self._generator = torch.Generator(device)

    def __call__(self, step: int, slots: range, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers fp32 [len(slots), *shape] of neighbouring slots."""
        together = min(MOST_ROWS, max(1, NUMBERS // math.prod(shape)))
        parts = []
        for first in range(slots.start - slots.start % together, slots.stop, together):
            philox = np.random.Philox(key=self.key, counter=[0, 0, first, step])
            self._generator.manual_seed(int(philox.random_raw() >> np.uint64(1)))
            rows = torch.randn(together, *shape, generator=self._generator, device=self.device)
            parts.append(rows[max(0, slots.start - first) : slots.stop - first])
        return torch.cat(parts)
