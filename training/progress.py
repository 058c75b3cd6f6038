"""How far a run is and when it will end: a bar on a terminal, a line now and then in a log file.

Usage: ``progress = Progress(total_steps=1000, start_step=0); progress.update(10, {"loss": 1.25})``
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import timedelta

from tqdm import tqdm

_BAR_FORMAT = "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}, {remaining} left{postfix}]"
_SECONDS_BETWEEN_LINES = 30.0
_SMOOTHING = 0.3


class Progress:
    """Reports on stderr; ``bar=False``, or a stderr that is no terminal, gives plain lines."""

    def __init__(self, total_steps: int, start_step: int = 0, *, bar: bool = True) -> None:
        self._total, self._start, self._step = total_steps, start_step, start_step
        self._started_at = self._updated_at = time.monotonic()
        self._printed_at: float | None = None
        self._seconds_per_step: float | None = None
        self._bar: tqdm | None = None
        if bar and sys.stderr.isatty():
            self._bar = tqdm(total=total_steps, initial=start_step, bar_format=_BAR_FORMAT, dynamic_ncols=True)

    def update(self, step: int, texts: Mapping[str, float | str] | None = None) -> None:
        """Show that ``step`` steps are done, with figures such as the loss."""
        now = time.monotonic()
        if step > self._step:
            latest = (now - self._updated_at) / (step - self._step)
            before = latest if self._seconds_per_step is None else self._seconds_per_step
            self._seconds_per_step = before + _SMOOTHING * (latest - before)
        details = [] if self._seconds_per_step is None else [f"{1000 * self._seconds_per_step:.4g} ms/step"]
        for key, value in (texts or {}).items():
            details.append(f"{key} {value if isinstance(value, str) else format(value, '.4g')}")
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(details), refresh=False)
            self._bar.update(step - self._step)
        elif self._is_line_due(step, now):
            self._printed_at = now
            line = [f"step {step}/{self._total}", self._time_left(step, now), *details]
            print(" | ".join(line), file=sys.stderr)
        self._step, self._updated_at = step, now

    def message(self, text: str) -> None:
        """Print a line without tearing the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _is_line_due(self, step: int, now: float) -> bool:
        is_first_or_last = self._printed_at is None or step >= self._total
        return is_first_or_last or now - (self._printed_at or 0.0) >= _SECONDS_BETWEEN_LINES

    def _time_left(self, step: int, now: float) -> str:
        done = step - self._start
        if done <= 0:
            return "starting"
        return f"{timedelta(seconds=round((now - self._started_at) / done * (self._total - step)))} left"
