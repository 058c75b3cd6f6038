"""The table of contents of a checkpoint: which files, their SHA-256, and everything that is not a tensor.

``manifest.json`` is JSON under its own SHA-256, so that a changed byte anywhere in a checkpoint is noticed
before any of it is used. Nothing is pickled and no name in it can point outside its directory.

Usage: ``manifest = read_manifest(directory); verify_file(directory, name, manifest.files[name])``
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy
import pydantic
import torch

from datasets.common import InputError
from training.files import sync

MANIFEST_NAME = "manifest.json"
_RESTORE = "restore the file or use another checkpoint"

_FILE_NAME = re.compile(r"\A[A-Za-z0-9_-][A-Za-z0-9_.-]*\.safetensors\Z")
FileName = Annotated[str, pydantic.Field(pattern=_FILE_NAME)]


class FileRecord(pydantic.BaseModel, extra="forbid", frozen=True):
    """One safetensors file. ``slots`` is the half-open range of global batch slots (dim 0 of every tensor)
    that a file of a sharded group holds, None for a group that is the same on every rank."""

    sha256: str = pydantic.Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = pydantic.Field(ge=0)
    group: str
    slots: tuple[int, int] | None = None


class Manifest(pydantic.BaseModel, extra="forbid", frozen=True):
    """Content of ``manifest.json``; ``meta`` is the caller's: configuration, dataset hash, metrics, ..."""

    format_version: Literal[1] = 1
    kind: str
    step: int = pydantic.Field(ge=0)
    versions: dict[str, str]
    files: dict[FileName, FileRecord]
    meta: dict[str, Any]


def versions() -> dict[str, str]:
    """What a bit-exact continuation depends on besides the checkpoint."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}
    if torch.version.cuda is not None:
        found |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
    return found


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write and sync ``manifest.json``; ``manifest.meta`` must hold JSON values only."""
    path = directory / MANIFEST_NAME
    path.write_text(_sealed(manifest.model_dump()), encoding="utf-8")
    sync(path)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a checkpoint directory; `InputError` names the file if it is missing or damaged."""
    path = directory / MANIFEST_NAME
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {_RESTORE}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} is damaged: not JSON; {_RESTORE}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: not a JSON object; {_RESTORE}")
    if content.get("format_version", 1) != 1:
        raise InputError(f"{path}: unknown format_version {content['format_version']!r}; update trm-lab")
    content.pop("sha256", None)
    if text != _sealed(content):
        raise InputError(f"{path} is damaged: its SHA-256 does not match; {_RESTORE}")
    try:
        return Manifest.model_validate(content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: key {key}: {first['msg']}; {_RESTORE}") from None


def verify_file(directory: Path, name: str, record: FileRecord) -> None:
    """Raise `InputError` unless the file is there, whole, and has the recorded SHA-256."""
    path = directory / name
    try:
        if path.is_symlink() or not path.is_file():
            raise InputError(f"{path} is missing; {_RESTORE}")
        size = path.stat().st_size
        if size != record.bytes:
            raise InputError(f"{path} is damaged: {size} bytes instead of {record.bytes}; {_RESTORE}")
        if sha256_of(path) != record.sha256:
            raise InputError(f"{path} is damaged: its SHA-256 does not match the manifest; {_RESTORE}")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {_RESTORE}") from None


def _sealed(content: dict[str, Any]) -> str:
    body = json.dumps(content, indent=1)
    digest = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({"sha256": digest, **content}, indent=1) + "\n"
