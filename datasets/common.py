"""What every dataset, evaluator and entry point shares: metadata, symmetries, names and the one input error.

A dataset directory holds ``identifiers.json``, for ARC ``test_puzzles.json``, and one folder a split whose
``dataset.json`` is described by `PuzzleDatasetMetadata`.

Usage: ``metadata = load_metadata("data/arc1/train"); names = load_identifiers("data/arc1")``
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic

IGNORE_LABEL_ID = -100
BLANK_NAME = "<blank>"

ARC_PAD, ARC_EOS, ARC_COLOUR_0 = 0, 1, 2
ARC_COLOURS = 10
ARC_VOCAB_SIZE = ARC_COLOUR_0 + ARC_COLOURS

DIHEDRAL_TRANSFORMS = 8
NAME_SEPARATOR = "|||"


class InputError(ValueError):
    """The user's input is wrong. The message is one line naming the thing and the remedy."""


class PuzzleDatasetMetadata(pydantic.BaseModel):
    """One split's ``dataset.json``. The first ten fields are the original format's, the others ours.

    ``total_groups * mean_puzzle_examples`` is the number of rows of one epoch, in which every group gives one
    of its puzzles. ``num_puzzle_identifiers`` counts the blank identifier too.
    """

    model_config = pydantic.ConfigDict(extra="ignore")

    pad_id: int = pydantic.Field(ge=0)
    ignore_label_id: int | None
    blank_identifier_id: int = pydantic.Field(ge=0)
    vocab_size: int = pydantic.Field(ge=1)
    seq_len: int = pydantic.Field(ge=1)
    num_puzzle_identifiers: int = pydantic.Field(ge=1)
    total_groups: int = pydantic.Field(ge=0)
    mean_puzzle_examples: float = pydantic.Field(ge=0)
    total_puzzles: int | None = None
    sets: list[str]

    kind: Literal["arc", "sudoku", "maze"] | None = None
    grid: tuple[int, int] | None = None
    box: tuple[int, int] | None = None
    storage: Literal["compact", "expanded"] = "expanded"
    dataset_hash: str | None = None
    provenance: dict[str, Any] | None = None


def read_json(path: Path) -> Any:
    """The parsed JSON file; `InputError` if it is missing, unreadable or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; build the dataset or correct the path") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); rebuild or restore the file") from None


def load_metadata(split_dir: str | Path) -> PuzzleDatasetMetadata:
    """Metadata of one split, e.g. ``DIR/train``; `InputError` names the file and the offending key."""
    path = Path(split_dir) / "dataset.json"
    try:
        return PuzzleDatasetMetadata.model_validate(read_json(path))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "top level"
        message = f"{path}: key {key}: {first['msg']}; rebuild the dataset or correct the key"
        raise InputError(message) from None


def load_identifiers(dataset_dir: str | Path) -> list[str]:
    """Puzzle names by identifier; index 0 is ``"<blank>"``."""
    path = Path(dataset_dir) / "identifiers.json"
    names = read_json(path)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path} must be a non-empty list of puzzle names; rebuild the dataset")
    return names


def load_test_puzzles(dataset_dir: str | Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """ARC only: ``{task id: {"train": [pair], "test": [pair]}}``, pair ``{"input": grid, "output": grid}``.

    A test pair whose solution was not given has no ``"output"``: it can be predicted but not scored.
    """
    path = Path(dataset_dir) / "test_puzzles.json"
    tasks = read_json(path)
    if not isinstance(tasks, dict):
        raise InputError(f"{path} must map task ids to their pairs; rebuild the dataset")
    for task_id, task in tasks.items():
        for part in ("train", "test"):
            pairs = task.get(part) if isinstance(task, dict) else None
            if not isinstance(pairs, list) or not all(isinstance(p, dict) and "input" in p for p in pairs):
                raise InputError(f"{path}: task {task_id} has no list of {part} pairs; rebuild the dataset")
    return tasks


def dihedral_transform(grid: np.ndarray, tid: int) -> np.ndarray:
    """Symmetry ``tid`` of the square applied to the last two axes [..., rows, cols] (a view).

    0 identity; 1, 2, 3 rotations by 90, 180, 270 degrees counter-clockwise; 4 left-right mirror; 5 up-down
    mirror; 6 transpose; 7 anti-transpose.
    """
    match tid:
        case 0:
            return grid
        case 1 | 2 | 3:
            return np.rot90(grid, k=tid, axes=(-2, -1))
        case 4:
            return np.flip(grid, axis=-1)
        case 5:
            return np.flip(grid, axis=-2)
        case 6:
            return np.swapaxes(grid, -2, -1)
        case 7:
            return np.flip(np.rot90(grid, k=1, axes=(-2, -1)), axis=-1)
        case _:
            raise ValueError(f"dihedral transform must be 0 to {DIHEDRAL_TRANSFORMS - 1}, got {tid}")


def inverse_dihedral_transform(grid: np.ndarray, tid: int) -> np.ndarray:
    """Undoes `dihedral_transform` with the same ``tid``."""
    return dihedral_transform(grid, {1: 3, 3: 1}.get(tid, tid))


def augmented_name(name: str, tid: int, colour_map: Sequence[int] | np.ndarray) -> str:
    """Name of an augmented ARC puzzle: ``colour_map[i]`` is the new colour of colour ``i``."""
    return f"{name}{NAME_SEPARATOR}t{tid}{NAME_SEPARATOR}{''.join(str(int(c)) for c in colour_map)}"


def split_augmented_name(name: str) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    """Base name of a puzzle and the function from its colour grids [rows, cols] back to the base puzzle's.

    A name without an augmentation suffix gives itself and the identity. Raises `InputError` on a bad suffix.
    """
    if NAME_SEPARATOR not in name:
        return name, lambda grid: grid
    parts = name.rsplit(NAME_SEPARATOR, 2)
    if len(parts) != 3 or parts[1] not in {f"t{tid}" for tid in range(DIHEDRAL_TRANSFORMS)}:
        raise InputError(f'puzzle name "{name}" must end in |||t0..t7|||ten digits; rebuild the dataset')
    base, tid, digits = parts[0], int(parts[1][1:]), parts[2]
    if sorted(digits) != [str(colour) for colour in range(ARC_COLOURS)]:
        raise InputError(f'puzzle name "{name}": "{digits}" is not a colour permutation; rebuild the dataset')
    inverse_colours = np.argsort([int(digit) for digit in digits]).astype(np.uint8)
    return base, lambda grid: inverse_colours[inverse_dihedral_transform(grid, tid)]


def check_folder(folder: Path, named: str) -> None:
    """`InputError` unless files can be written to ``folder``, which need not exist yet.

    Asked before long work, so that it is not lost in the end. ``named`` is how the user named the folder.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    if not nearest.is_dir():
        raise InputError(f"{named} cannot be written: {nearest} is a file; give a directory")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{named} cannot be written: permission denied in {nearest}; give another directory")


def run_builder(build: Callable[[], object]) -> int:
    """Exit code of a builder's command line: 0, or 2 after ``error: <one line>`` on stderr."""
    try:
        build()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
