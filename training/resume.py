"""Which checkpoint a run goes on from.

Usage: ``path = checkpoint_to_resume(config.resume, config.run_dir, dist)``
"""

from __future__ import annotations

from pathlib import Path

from datasets.common import InputError
from training.checkpoint import find_latest, resolve_checkpoint
from training.distributed import Distributed


def checkpoint_to_resume(resume: str | None, run_dir: Path, dist: Distributed) -> Path | None:
    """The same on every rank; None for a new run. `InputError` where a new run would overwrite an old one."""
    if resume == "auto":
        return dist.broadcast_object(find_latest(run_dir) if dist.is_main else None)
    if resume is not None:
        return resolve_checkpoint(resume)
    if any((run_dir / "checkpoints").glob("step_*")):
        raise InputError(f"{run_dir} has checkpoints: use resume=auto to continue, or another run_name")
    return None
