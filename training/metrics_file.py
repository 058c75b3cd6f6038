"""The figures of a run on disk: ``metrics.jsonl``, one record a line, and ``metrics.csv``, the same table.

A record is ``{"step": 10, "time": 1767225600.0, "train/loss": 1.25, ...}``; time is in seconds since 1970.
A value that is not finite is null (JSON) or empty (CSV).

Usage: ``metrics = MetricsFile(run_dir, start_step=0); metrics.append(10, {"train/loss": 1.25})``
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, SupportsFloat

from training.files import is_disk_refusal, written_aside

JSONL_NAME, CSV_NAME = "metrics.jsonl", "metrics.csv"


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """The records of a run in the order of writing; lines cut short by a kill or a full disk are left out."""
    path = Path(run_dir) / JSONL_NAME
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


class MetricsFile:
    """Appends to both files, keeping what an earlier process logged up to and including ``start_step``.

    Records beyond it belong to steps that will be done again and are dropped; with ``start_step=0`` nothing
    is kept. A full disk costs records and a warning, not the run.
    """

    def __init__(self, run_dir: str | Path, start_step: int = 0) -> None:
        self._run_dir = Path(run_dir)
        self._run_dir.mkdir(parents=True, exist_ok=True)
        kept = [record for record in read_metrics(run_dir) if 0 < start_step >= record["step"]]
        with written_aside(self._run_dir / JSONL_NAME) as path:
            path.write_text("".join(map(_json_line, kept)), encoding="utf-8")
        self._columns: list[str] = []
        self._add_columns(kept)
        self._write_table(kept)
        # Unbuffered: a line is in the file, or known not to be, when `append` returns.
        self._jsonl = (self._run_dir / JSONL_NAME).open("ab", buffering=0)
        self._last_write_failed = False

    def append(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Add one record. Columns that are new to the table cost one rewriting of it."""
        numbers = {key: _number(value) for key, value in values.items()}
        record = {"step": step, "time": round(time.time(), 3), **numbers}
        try:
            self._append_line(_json_line(record).encode())
            if self._add_columns([record]):
                self._write_table(read_metrics(self._run_dir))
            else:
                with (self._run_dir / CSV_NAME).open("a", encoding="utf-8", newline="") as file:
                    file.write(self._table_rows([record]))
        except OSError as error:
            if not is_disk_refusal(error):
                raise
            if not self._last_write_failed:
                print(f"warning: metrics of step {step} were not saved: {error}", file=sys.stderr)
            self._last_write_failed = True

    def close(self) -> None:
        self._jsonl.close()

    def _append_line(self, line: bytes) -> None:
        # What a failed write left of its line must not run into this one.
        if self._last_write_failed:
            line = b"\n" + line
        while line:
            line = line[self._jsonl.write(line) :]
        self._last_write_failed = False

    def _add_columns(self, records: Iterable[Mapping[str, Any]]) -> bool:
        new = dict.fromkeys(key for record in records for key in record if key not in self._columns)
        self._columns += new
        return bool(new)

    def _write_table(self, records: list[dict[str, Any]]) -> None:
        with written_aside(self._run_dir / CSV_NAME) as path:
            header = dict(zip(self._columns, self._columns, strict=True))
            path.write_text(self._table_rows([header, *records]), encoding="utf-8", newline="")

    def _table_rows(self, records: Iterable[Mapping[str, Any]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerows(records)
        return text.getvalue()


def _json_line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _number(value: SupportsFloat) -> float | int | None:
    if isinstance(value, int):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None
