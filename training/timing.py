"""How long things take and what the device can do: for the benches, which claim ratios of figures from one process.

clock = Clock(device, warm_up=8, repeats=20)
milliseconds = clock(lambda: step())
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo.utils
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).parents[1]
# What PyTorch's dispatcher calls the attention kernels, in the order in which they are looked for.
ATTENTION = {
    "trm_lab::attention": "FlashAttention-4",
    "_scaled_dot_product_cudnn_attention": "cuDNN",
    "_scaled_dot_product_flash_attention": "flash",
    "_scaled_dot_product_efficient_attention": "memory-efficient",
    "_scaled_dot_product_attention_math": "math",
}


def circumstances(device: torch.device) -> dict[str, str]:
    """What figures hold for: the device's name, the libraries, and the commit where the code is a git checkout."""
    found = {"device": f"{device} ({platform.machine()})", "torch": torch.__version__}
    if device.type == "cuda":
        found |= {"device": torch.cuda.get_device_name(device), "cudnn": str(torch.backends.cudnn.version())}
    # The checkout's own, and not that of a repository that it may lie in.
    asked = ["git", f"--git-dir={ROOT / '.git'}", "rev-parse", "--short", "HEAD"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        found["commit"] = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    return found


def as_json(value: object) -> str:
    """Figures as JSON, which has no number for what is not one: null."""
    return json.dumps(_finite(value), indent=2, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Clock:
    """Milliseconds of a call: the median of `repeats` after `warm_up`, by CUDA events where there are any."""

    def __init__(self, device: torch.device, warm_up: int, repeats: int):
        self.device, self.warm_up, self.repeats = device, warm_up, repeats

    def __call__(self, call: Callable[[], object]) -> float:
        for _ in range(self.warm_up):
            call()
        if self.device.type != "cuda":
            return statistics.median(self._on_host(call) for _ in range(self.repeats))
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(self.repeats)]
        for start, end in events:
            start.record()
            call()
            end.record()
        torch.cuda.synchronize(self.device)
        return statistics.median(start.elapsed_time(end) for start, end in events)

    @staticmethod
    def _on_host(call: Callable[[], object]) -> float:
        started = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - started)


def matmul_tflops(device: torch.device, clock: Clock, size: int) -> float:
    """What a product of two random bf16 matrices of this size reaches; it differs from card to card by some percent."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / clock(lambda: a @ b) / 1e9


def kernel_times(call: Callable[[], object], calls: int = 3) -> dict[str, float]:
    """Milliseconds a call of every kernel on the GPU by name, the longest first; after `calls` calls unrecorded."""
    for _ in range(calls):
        call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    times = {event.key: event.self_device_time_total / calls / 1000 for event in record.key_averages()}
    return dict(sorted(times.items(), key=lambda entry: -entry[1]))


def graphs_compiled() -> int:
    """Graphs that the compiler has built in this process so far; ones it was made to break are an error in our use."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def waits_for_device(call: Callable[[], object]) -> bool:
    """Whether the host waits for the GPU in a call."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def attention_backend(call: Callable[[], object]) -> str:
    """Which attention kernels a call ends in, as the dispatcher says; ``none`` where there is no attention."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        call()
    names = {event.key for event in record.key_averages()}
    found = [kind for part, kind in ATTENTION.items() if any(part in name for name in names)]
    return ", ".join(found) or "none"
