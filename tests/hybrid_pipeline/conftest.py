"""These tests belong to `hybrid_pipeline`: where that folder was deleted there is nothing to test."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

PARTS = ("hybrid_pipeline/__init__.py", "hybrid_train.py", "hybrid_describe.py")
collect_ignore_glob = [] if all((ROOT / part).is_file() for part in PARTS) else ["*"]
