"""Stop at the next step instead of in the middle of one: signals become a flag that the loop reads.

    with StopRequest() as stop:
        for step in range(steps):
            ...
            if dist.any_true(stop.requested):
                break

A second signal ends the process at once, by that signal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

# Schedulers signal a whole process tree and torchrun then forwards the signal to its workers, so one request
# reaches a worker twice within milliseconds. A person's second Ctrl-C comes later than this.
_ONE_REQUEST_SECONDS = 0.5


class StopRequest:
    """While entered (in the main thread), a stop signal sets `requested` and `signal_name`; leaving restores
    the handlers that were there before."""

    def __init__(self) -> None:
        self._signalled = False
        self.signal_name: str | None = None
        self._launcher = os.getppid()
        self._requested_at = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether to stop: a signal came, or torchrun ended (of a signal it does not forward) and left this worker."""
        if "RANK" in os.environ and os.getppid() != self._launcher and not self._signalled:
            self._signalled, self.signal_name = True, "the end of torchrun"
        return self._signalled

    def __enter__(self) -> StopRequest:
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._requested_at > 0:
            # The same request may still arrive a second time, and would end a process that has just saved.
            time.sleep(max(0.0, self._requested_at + _ONE_REQUEST_SECONDS - time.monotonic()))
        for number, handler in self._previous.items():
            # None: the old handler was not set from Python and cannot be put back from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self._signalled:
            self._signalled, self.signal_name, self._requested_at = True, signal.Signals(number).name, now
            if os.environ.get("RANK", "0") == "0":
                _tell(f"{self.signal_name}: stopping after this step; send it again to stop at once\n")
        elif now - self._requested_at > _ONE_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


def _tell(line: str) -> None:
    # Not print: a handler may interrupt a print, and a buffered stream refuses to be entered twice.
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line.encode())
