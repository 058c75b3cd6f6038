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
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from datasets.common import InputError
from training.cli import EXIT_INTERRUPTED

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
    are once `should_stop` says so, which is nothing that went wrong; no further one starts once `closed` does."""

    def __init__(
        self,
        devices: Sequence[str],
        *,
        timeout: float,
        should_stop: Callable[[], bool] = _never,
        closed: Callable[[], bool] = _never,
    ):
        self._devices, self._timeout = devices, timeout
        self.should_stop, self._closed = should_stop, closed

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, str | None]]:
        """Each job that ran, as it ends, and what went wrong; those that were not started are left out.

        What keeps a job from running at all, as `OSError` where its log cannot be written, is raised. Commands that
        still run are then asked to end, as they are where the caller does not wait for them.
        """
        free: queue.SimpleQueue[str] = queue.SimpleQueue()
        for device in self._devices:
            free.put(device)
        left = threading.Event()

        def stopping() -> bool:
            return self.should_stop() or left.is_set()

        def work(job: Job) -> tuple[bool, str | None]:
            if stopping() or self._closed():
                return False, None
            device = free.get()
            try:
                return True, self._run(job, device, stopping)
            finally:
                free.put(device)

        with ThreadPoolExecutor(len(self._devices)) as workers:
            of_job = {workers.submit(work, job): job for job in jobs}
            try:
                for future in as_completed(of_job):
                    ran, problem = future.result()
                    if ran:
                        yield of_job[future], problem
            finally:
                left.set()
                workers.shutdown(cancel_futures=True)

    def _run(self, job: Job, device: str, stopping: Callable[[], bool]) -> str | None:
        """What went wrong, in a line; None if nothing did."""
        job.log.parent.mkdir(parents=True, exist_ok=True)
        threads = str(max(1, (os.cpu_count() or 1) // len(self._devices)))
        environment = {"OMP_NUM_THREADS": threads, **os.environ, "CUDA_VISIBLE_DEVICES": device}
        with job.log.open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, *job.arguments], stdout=log, stderr=subprocess.STDOUT, env=environment
            )
            code = self._wait(process, stopping)
        if code == 0 or (interrupted(code) and stopping()):
            return None
        if code is None:
            return f"ended after {self._timeout:.0f} s, the longest that a run may take"
        return f"exit code {code}: {last_words(job.log)}"

    def _wait(self, process: subprocess.Popen[bytes], stopping: Callable[[], bool]) -> int | None:
        """The exit code; None for a command that ran out of time."""
        started, late = time.monotonic(), False
        while process.poll() is None:
            late = time.monotonic() - started > self._timeout
            if late or stopping():
                process.terminate()
                try:
                    process.wait(PATIENCE_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                break
            time.sleep(POLL_SECONDS)
        return None if late else process.returncode


def interrupted(code: int | None) -> bool:
    """Whether a signal ended the command, be it before it had a handler: no fault of its own."""
    return code is not None and (code < 0 or code == EXIT_INTERRUPTED)


def last_words(log: Path) -> str:
    """The last line of a log that says something, at most 200 characters of it."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line[:200] for line in reversed(lines) if line), "it said nothing")
