"""Commands run side by side, one on each GPU at a time, or one after the other on the CPU.

pool = Pool(devices_of(gpus=4, available=4), timeout=3600)
for job, problem in pool.run([Job("trm-s0", ("pretrain.py", "arch=trm"), Path("trm.log"))]):
    ...                                         # as each of them ends; problem is None where it went well
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.common import InputError

POLL_SECONDS = 0.2
PATIENCE_SECONDS = 120  # for a command that was asked to end, and is writing a checkpoint

CPU = ""  # the value of CUDA_VISIBLE_DEVICES that hides all GPUs


@dataclass(frozen=True)
class Job:
    """`arguments` of the Python interpreter; what it prints goes to `log`."""

    name: str
    arguments: tuple[str, ...]
    log: Path


def devices_of(gpus: int, available: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each place to work at: so many of the visible GPUs, or one place on the CPU for 0.

    `InputError` if there are fewer.
    """
    if gpus == 0:
        return [CPU]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(i) for i in range(available)] if visible is None else [n for n in visible.split(",") if n]
    if gpus > min(available, len(names)):
        raise InputError(f"--gpus {gpus}, but PyTorch finds {min(available, len(names))} here")
    return names[:gpus]


def _never() -> bool:
    return False


class Pool:
    """A place to work at for each of `devices`. A command is asked to end (SIGTERM) after `timeout` seconds, and all
    are once `should_stop` says so; no further one starts once `closed` does."""

    def __init__(
        self,
        devices: Sequence[str],
        *,
        timeout: float,
        should_stop: Callable[[], bool] = _never,
        closed: Callable[[], bool] = _never,
    ):
        self._devices, self._timeout = devices, timeout
        self._should_stop, self._closed = should_stop, closed

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, str | None]]:
        """Each job that ran, as it ends, and what went wrong; those that were not started are left out."""
        waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
        ended: queue.SimpleQueue[tuple[Job, str | None] | None] = queue.SimpleQueue()
        for job in jobs:
            waiting.put(job)

        def work(device: str) -> None:
            while not (self._should_stop() or self._closed()):
                try:
                    job = waiting.get_nowait()
                except queue.Empty:
                    break
                ended.put((job, self._run(job, device)))
            ended.put(None)

        workers = [threading.Thread(target=work, args=(device,)) for device in self._devices]
        for worker in workers:
            worker.start()
        running = len(workers)
        while running:
            found = ended.get()
            if found is None:
                running -= 1
            else:
                yield found
        for worker in workers:
            worker.join()

    def _run(self, job: Job, device: str) -> str | None:
        """What went wrong, in a line; None if nothing did."""
        job.log.parent.mkdir(parents=True, exist_ok=True)
        threads = str(max(1, (os.cpu_count() or 1) // len(self._devices)))
        environment = {"OMP_NUM_THREADS": threads, **os.environ, "CUDA_VISIBLE_DEVICES": device}
        with job.log.open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, *job.arguments], stdout=log, stderr=subprocess.STDOUT, env=environment
            )
            code = self._wait(process)
        if code == 0:
            return None
        if code is None:
            return f"ended after {self._timeout:.0f} s, the longest that a run may take"
        return f"exit code {code}: {last_words(job.log)}"

    def _wait(self, process: subprocess.Popen[bytes]) -> int | None:
        """The exit code; None for a command that ran out of time."""
        started, late = time.monotonic(), False
        while process.poll() is None:
            late = time.monotonic() - started > self._timeout
            if late or self._should_stop():
                process.terminate()
                try:
                    process.wait(PATIENCE_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                break
            time.sleep(POLL_SECONDS)
        return None if late else process.returncode


def last_words(log: Path) -> str:
    """The last line of a log that says something, at most 200 characters of it."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line[:200] for line in reversed(lines) if line), "it said nothing")
