"""One job a run directory: a second one is refused instead of overwriting the first one's checkpoints.

    with RunLock(run_dir):
        train()

The lock is the kernel's (`flock`), so it vanishes with its process however that ends; the file stays behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Any

from datasets.common import InputError
from training.distributed import Distributed


def exclusive(run_dir: str | Path, dist: Distributed) -> contextlib.AbstractContextManager[Any]:
    """One job a run directory; rank 0 holds the lock for all."""
    return RunLock(run_dir) if dist.is_main else contextlib.nullcontext()


class RunLock:
    """Holds ``run_dir/run.lock``, whose text names the owner's host and process id.

    Entering creates the directory, and raises `InputError` naming the owner if the lock is held.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.path = Path(run_dir) / "run.lock"
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(f"run directory {self.path.parent} cannot be used: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 4096).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise InputError(
                f"run directory {self.path.parent} is in use by {owner}; stop that job or set checkpoint_path"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"host {socket.gethostname()} pid {os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._descriptor is not None, "RunLock was left without having been entered"
        os.close(self._descriptor)
        self._descriptor = None
