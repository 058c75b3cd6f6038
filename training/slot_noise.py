"""Normal noise as a function of (seed, purpose, step, slot of the global batch), drawn on the device.

Usage: ``SlotNoise(seed, purpose, slots, device)(step, (97, 512))`` is fp32 [len(slots), 97, 512].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# Rows whose noise comes from one seed: few launches, and little is drawn that belongs to other processes.
NOISE_ROWS = 8


class SlotNoise:
    """Neither a restart nor the number of processes changes what a slot is given."""

    def __init__(self, seed: int, purpose: int, slots: range, device: torch.device):
        self.key, self.slots, self.device = [seed, purpose], slots, device
        self._generator = torch.Generator(device)

    def __call__(self, step: int, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers fp32 [len(slots), *shape]."""
        slots, parts = self.slots, []
        for first in range(slots.start - slots.start % NOISE_ROWS, slots.stop, NOISE_ROWS):
            philox = np.random.Philox(key=self.key, counter=[0, 0, first, step])
            self._generator.manual_seed(int(philox.random_raw() >> np.uint64(1)))
            rows = torch.randn(NOISE_ROWS, *shape, generator=self._generator, device=self.device)
            parts.append(rows[max(0, slots.start - first) : slots.stop - first])
        return torch.cat(parts)
