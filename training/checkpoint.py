"""Checkpoints that survive a kill at any moment, a full disk, damaged files and another number of processes.

    run_dir/checkpoints/step_200/{manifest.json, model.safetensors, carry.0-96.safetensors, ...}
    run_dir/checkpoints/latest -> step_200

A directory is written beside its place, every file synced, the manifest last, and renamed; then the link
`latest` is replaced in one rename. So what `latest` names is always complete. Sharded groups hold one row a
global batch slot and are cut anew for whichever slots a process asks for.

Usage: ``save_checkpoint(run_dir, 200, replicated={"model": state}, sharded={}, meta={}, keep_last=3)``
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from datasets.common import InputError
from training.distributed import Distributed
from training.files import is_disk_refusal, sync
from training.manifest import (
    MANIFEST_NAME,
    FileRecord,
    Manifest,
    read_manifest,
    sha256_of,
    verify_file,
    versions,
    write_manifest,
)

LATEST = "latest"
_STEP_DIR = re.compile(r"step_(\d+)(\.replaced)?")
_GROUP = re.compile(r"[a-z0-9_]+")

Group = Mapping[str, Tensor]
T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """What was asked of a checkpoint. ``groups`` and ``shards`` map group -> tensor name -> tensor; the
    tensors own their memory. Dim 0 of a tensor in ``shards`` is the slots that were asked for."""

    path: Path
    step: int
    kind: str
    meta: dict[str, Any]
    groups: dict[str, dict[str, Tensor]]
    shards: dict[str, dict[str, Tensor]]


def save_checkpoint(
    run_dir: str | Path,
    step: int,
    *,
    replicated: Mapping[str, Group],
    sharded: Mapping[str, tuple[range, Group]],
    meta: dict[str, Any],
    keep_last: int | None = None,
    dist: Distributed | None = None,
    kind: str = "training",
    needed: bool = False,
) -> Path | None:
    """Write ``run_dir/checkpoints/step_{step}``; every rank calls it with the same step and group names.

    Args:
        replicated: groups of tensors equal on every rank; rank 0 writes them.
        sharded: group -> (this rank's global slots, tensors whose dim 0 is those slots); the ranks' ranges
            tile 0..N. Every rank writes its own.
        meta: JSON values; rank 0's are kept.
        keep_last: delete all but so many checkpoints, never the one just written. None keeps all.

    Returns the directory, or None on every rank, after a warning, if the disk refused (full, quota,
    read-only): what was there before stays valid. `InputError` instead where the checkpoint is `needed`. Other disk
    errors are raised on every rank.
    """
    dist = dist or Distributed()
    json.dumps(meta)  # raises now, on every rank, rather than on rank 0 while the others wait
    _check_groups(replicated, sharded)
    root = Path(run_dir) / "checkpoints"
    final, aside = root / f"step_{step}", root / f"step_{step}.tmp"
    try:
        _on_all_ranks(dist, lambda: _prepare(root, aside) if dist.is_main else None)
        written = _on_all_ranks(dist, lambda: _write_groups(aside, replicated, sharded, dist.is_main))
        files = {name: record for part in written for name, record in part.items()}
        _check_tiling(files)
        manifest = Manifest(kind=kind, step=step, versions=versions(), files=files, meta=meta)
        _on_all_ranks(dist, lambda: _publish(aside, final, manifest) if dist.is_main else None)
    except OSError as error:
        if dist.is_main:
            shutil.rmtree(aside, ignore_errors=True)
        if not is_disk_refusal(error):
            raise
        if dist.is_main:
            print(f"warning: checkpoint of step {step} was not saved: {error}", file=sys.stderr)
        if needed:
            raise InputError(f"step {step} could not be saved in {run_dir}: make room and run again") from None
        return None
    if dist.is_main:
        _prune(root, keep_last)
    return final


def load_checkpoint(
    path: str | Path,
    *,
    groups: Collection[str],
    device: str | torch.device = "cpu",
    slots: range | None = None,
) -> Checkpoint:
    """Read the named groups of a checkpoint directory, each file only after its SHA-256 was found right.

    Args:
        groups: replicated and sharded group names alike; a missing one is an error.
        slots: the global slots to cut out of sharded groups, whatever the number of processes that saved
            them; None gives all.

    Raises `InputError` naming the damaged or missing file, group or slot.
    """
    directory = Path(path).resolve()
    manifest = read_manifest(directory)
    present = {record.group for record in manifest.files.values()}
    for group in groups:
        if group not in present:
            raise InputError(f"{directory} has no group {group!r}, only {', '.join(sorted(present))}")
    found = Checkpoint(directory, manifest.step, manifest.kind, manifest.meta, {}, {})
    for group in groups:
        files = {name: record for name, record in manifest.files.items() if record.group == group}
        rows = _rows_to_read(directory, files, slots)
        for name in rows:
            verify_file(directory, name, files[name])
        is_sharded = any(record.slots is not None for record in files.values())
        target = found.shards if is_sharded else found.groups
        target[group] = _read_tensors(directory, rows, device)
    return found


def find_latest(run_dir: str | Path) -> Path | None:
    """The checkpoint to continue from: `latest` if it is intact, else the newest one before it that is.

    Every damaged one is named in one line on stderr. None if there are no checkpoints; `InputError` if there
    are but none is intact. In a distributed job, let rank 0 decide and broadcast the answer.
    """
    root = Path(run_dir) / "checkpoints"
    candidates = _newest_first(root)
    for path in candidates:
        try:
            verify_checkpoint(path)
        except InputError as error:
            print(f"warning: skipping checkpoint {path.name}: {error}", file=sys.stderr)
        else:
            return path
    if candidates:
        raise InputError(f"no checkpoint in {root} is intact; restore one or remove the folder")
    return None


def resolve_checkpoint(path: str | Path) -> Path:
    """The checkpoint directory that a user means by ``path``: itself, or the latest of a run directory."""
    path = Path(path)
    if (path / MANIFEST_NAME).is_file():
        return path.resolve()
    run_dir = path.parent if path.name == "checkpoints" else path
    latest = find_latest(run_dir)
    if latest is None:
        raise InputError(f"{path} is no checkpoint and no run directory that has one; correct the path")
    return latest


def verify_checkpoint(path: str | Path) -> Manifest:
    """Check every file of a checkpoint against its SHA-256; `InputError` names the first damaged one."""
    manifest = read_manifest(Path(path))
    for name, record in manifest.files.items():
        verify_file(Path(path), name, record)
    return manifest


def _on_all_ranks(dist: Distributed, stage: Callable[[], T]) -> list[T]:
    """Every rank's result, or on every rank the first OSError that any of them met: nobody waits in vain."""
    outcome: T | OSError
    try:
        outcome = stage()
    except OSError as error:
        outcome = error
    outcomes = dist.all_gather_objects(outcome)
    for other in outcomes:
        if isinstance(other, OSError):
            raise other
    return outcomes


def _check_groups(replicated: Mapping[str, Group], sharded: Mapping[str, tuple[range, Group]]) -> None:
    for group in (*replicated, *sharded):
        if not _GROUP.fullmatch(group) or (group in replicated and group in sharded):
            raise ValueError(f"group name {group!r} is used twice or not made of a-z, 0-9 and _")
    for group, (slots, tensors) in sharded.items():
        for name, tensor in tensors.items():
            if tensor.ndim == 0 or tensor.shape[0] != len(slots):
                raise ValueError(f"{group}: {name} has shape {tuple(tensor.shape)} for {len(slots)} slots")


def _prepare(root: Path, aside: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob("step_*.tmp"):  # of a process that was killed while saving
        shutil.rmtree(leftover)
    aside.mkdir()


def _write_groups(
    aside: Path, replicated: Mapping[str, Group], sharded: Mapping[str, tuple[range, Group]], is_main: bool
) -> dict[str, FileRecord]:
    records = {}
    if is_main:
        for group, tensors in replicated.items():
            path = aside / f"{group}.safetensors"
            records[path.name] = _write_tensors(path, group, None, tensors)
    for group, (slots, tensors) in sharded.items():
        path = aside / f"{group}.{slots.start}-{slots.stop}.safetensors"
        records[path.name] = _write_tensors(path, group, (slots.start, slots.stop), tensors)
    return records


def _write_tensors(path: Path, group: str, slots: tuple[int, int] | None, tensors: Group) -> FileRecord:
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(_separate(tensors), path)
    except SafetensorError as error:
        # It carries the system's error number in its text only.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
    path.chmod(mode)  # the library makes files that nobody else may read
    sync(path)
    return FileRecord(sha256=sha256_of(path), bytes=path.stat().st_size, group=group, slots=slots)


def _separate(tensors: Group) -> dict[str, Tensor]:
    """On the CPU, contiguous, and no two in one storage, as the file format demands."""
    separate: dict[str, Tensor] = {}
    addresses: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().to("cpu").contiguous()
        is_part = tensor.untyped_storage().nbytes() != tensor.nbytes
        separate[name] = tensor.clone() if is_part or tensor.data_ptr() in addresses else tensor
        addresses.add(tensor.data_ptr())
    return separate


def _check_tiling(files: Mapping[str, FileRecord]) -> None:
    ends: dict[str, int] = {}
    shards = [(record.group, *record.slots) for record in files.values() if record.slots is not None]
    for group, start, stop in sorted(shards):
        if start != ends.get(group, 0) or stop <= start:
            raise ValueError(f"{group}: slots {start}..{stop} do not follow on {ends.get(group, 0)}")
        ends[group] = stop


def _publish(aside: Path, final: Path, manifest: Manifest) -> None:
    root = final.parent
    write_manifest(aside, manifest)
    sync(aside)
    if final.exists():
        replaced = root / f"{final.name}.replaced"
        if replaced.exists():
            shutil.rmtree(replaced)
        os.replace(final, replaced)  # still found under this name, should the process end here
    os.replace(aside, final)
    sync(root)
    pointer = root / f"{LATEST}.tmp"
    pointer.unlink(missing_ok=True)
    pointer.symlink_to(final.name)
    os.replace(pointer, root / LATEST)
    sync(root)


def _newest_first(root: Path) -> list[Path]:
    """Checkpoint directories: what `latest` names, then earlier steps, then later ones (of a run that was
    continued from before them)."""
    steps = {path: match for path in root.glob("step_*") if (match := _STEP_DIR.fullmatch(path.name))}
    latest = root / LATEST
    pointed = _STEP_DIR.fullmatch(os.readlink(latest)) if latest.is_symlink() else None

    def order(path: Path) -> tuple[bool, int, bool]:
        step, is_replaced = int(steps[path][1]), steps[path][2] is not None
        return pointed is not None and step > int(pointed[1]), -step, is_replaced

    return sorted(steps, key=order)


def _prune(root: Path, keep_last: int | None) -> None:
    kept: list[Path] = []
    for path in _newest_first(root):
        is_replaced = path.suffix == ".replaced" and path.with_suffix("") in kept
        if is_replaced or (keep_last is not None and len(kept) >= max(1, keep_last)):
            _remove(path)
        else:
            kept.append(path)


def _remove(path: Path) -> None:
    # Renamed first: what a kill leaves of it is then a leftover, not a damaged checkpoint.
    doomed = path.with_name(f"{path.name}.tmp")
    with contextlib.suppress(OSError):
        os.replace(path, doomed)
        shutil.rmtree(doomed)


def _rows_to_read(directory: Path, files: Mapping[str, FileRecord], slots: range | None) -> dict[str, slice | None]:
    """File name -> the rows of it that ``slots`` covers, in slot order; None is all of a replicated file."""
    held = {name: range(*record.slots) for name, record in files.items() if record.slots is not None}
    if not held:
        return dict.fromkeys(files)
    total = max(span.stop for span in held.values())
    wanted = range(total) if slots is None else slots
    if wanted.start < 0 or wanted.stop > total:
        raise InputError(
            f"{directory} holds slots 0 to {total}, not {wanted.start} to {wanted.stop}; "
            f"continue with global_batch_size={total}"
        )
    rows: dict[str, slice | None] = {}
    for name, span in sorted(held.items(), key=lambda item: item[1].start):
        start, stop = max(span.start, wanted.start), min(span.stop, wanted.stop)
        if start < stop:
            rows[name] = slice(start - span.start, stop - span.start)
    return rows


def _read_tensors(directory: Path, rows: Mapping[str, slice | None], device: str | torch.device) -> dict[str, Tensor]:
    """Tensor name -> the given rows of every file, one after the other."""
    parts: dict[str, list[Tensor]] = {}
    for file_name, cut in rows.items():
        try:
            with safe_open(directory / file_name, framework="pt", device=str(device)) as file:
                for name in file.keys():  # noqa: SIM118 (it is not a mapping)
                    part = file.get_tensor(name) if cut is None else file.get_slice(name)[cut]
                    # A copy, because on the CPU it is the mapped file itself, which may change or go away.
                    parts.setdefault(name, []).append(part.clone())
        except SafetensorError as error:
            raise InputError(f"{directory / file_name} is not a safetensors file: {error}") from None
    return {name: pieces[0] if len(pieces) == 1 else torch.cat(pieces) for name, pieces in parts.items()}
