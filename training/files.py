"""Files that are either whole or absent: written aside, synced to disk, then renamed into place.

Usage: ``with written_aside(run_dir / "metrics.csv") as path: path.write_text(table)``
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets.common import InputError, check_folder

# A full disk, an exceeded quota, a disk or folder that became read-only: worth a warning, not worth a run.
_DISK_REFUSALS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES})


def is_disk_refusal(error: OSError) -> bool:
    """Whether the disk would not take the data, so that training may go on and try again later."""
    return error.errno in _DISK_REFUSALS


def sync(path: Path) -> None:
    """Force a file's content, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_file(path: Path, named: str) -> None:
    """`InputError` unless `path`, which the user named so, can be written as a file in a folder that is there."""
    if path.is_dir():
        raise InputError(f"{named} is a folder: name a file in it")
    if not path.parent.is_dir():
        raise InputError(f"{named}: {path.parent} is not a folder; create it or correct the path")
    check_folder(path.parent, named)


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path; it becomes ``path`` in one rename if the block succeeds, else it is removed."""
    aside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        yield aside
        sync(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
