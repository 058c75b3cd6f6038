"""Training figures between two records, summed on the device so that no step waits for the host."""

from __future__ import annotations

import time
from types import TracebackType

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
        """Means over the window and all ranks: losses by row, everything else by what `count` counts (in pretraining
        rows that halted)."""
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


class Stopwatch:
    """Mean time of a part of every step, taken on the device's own clock so that no step waits for it.

    ``with stopwatch: work()`` in every step, `mean_ms` when records are written.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds, self._count, self._entered = 0.0, 0, 0.0

    def __enter__(self) -> Stopwatch:
        self._count += 1
        if self._on_gpu:
            self._spans.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            self._spans[-1][0].record()
        else:
            self._entered = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._on_gpu:
            self._spans[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._entered

    def mean_ms(self) -> float:
        """Milliseconds a step since the last call; waits for the device."""
        if self._on_gpu and self._spans:
            self._spans[-1][1].synchronize()
            self._seconds = sum(start.elapsed_time(end) for start, end in self._spans) / 1000
        mean = 1000 * self._seconds / max(1, self._count)
        self._spans, self._seconds, self._count = [], 0.0, 0
        return mean
