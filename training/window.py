"""Training figures between two records, summed on the device so that no step waits for the host."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from training.distributed import Distributed


class MetricWindow:
    """Sums of metrics since the last record, kept on the device until they are asked for."""

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.updates = 0
        self.started = self.updated = time.perf_counter()

    def resume_clock(self) -> None:
        """Leave out the time since the last update: something else was done."""
        self.started += time.perf_counter() - self.updated

    def add(self, metrics: dict[str, Tensor]) -> None:
        self.updates += 1
        self.updated = time.perf_counter()
        for key, value in metrics.items():
            value = value.to(torch.float64 if value.device.type == "cpu" else torch.float32)
            self.sums[key] = self.sums[key] + value if key in self.sums else value

    def summary(self, dist: Distributed) -> dict[str, float]:
        """Means over the window and all ranks: losses by row, accuracies by row that halted."""
        norm = self.sums.pop("grad_norm")
        sums = torch.stack([value.to(norm.device, norm.dtype) for value in self.sums.values()])
        dist.all_reduce_flat([sums])
        total = dict(zip(self.sums, sums.tolist(), strict=True))
        count, rows = max(1.0, total.pop("count")), total.pop("rows")
        figures = {key: value / (rows if key.endswith("loss") else count) for key, value in total.items()}
        seconds = time.perf_counter() - self.started
        figures |= {
            "grad_norm": norm.item() / self.updates,
            "rows_per_s": rows / seconds,
            "ms_per_step": 1000 * seconds / self.updates,
        }
        if norm.device.type == "cuda":
            figures["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self._restart()
        return figures
