"""Writing dataset directories, and the row-maker hook by which both storages give the same rows.

A builder describes a split by a `SplitPlan`: base grids, an augmentation plan and the hierarchy of groups,
puzzles and examples. Compact storage saves just that and makes rows when they are read; expanded storage
makes all rows once and saves them in the original's ``.npy`` layout. Either way rows come from the kind's row
maker: ``make_rows`` of the module that `ROW_MAKER_MODULES` names.

Usage: ``summary = write_dataset(Path("data/x"), splits={"train": plan, "test": plan}, kind="sudoku", ...)``
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np

from datasets.common import InputError, PuzzleDatasetMetadata, check_folder

Kind = Literal["arc", "sudoku", "maze"]
Storage = Literal["compact", "expanded"]

SET_NAME = "all"
INDEX_ARRAYS = ("puzzle_identifiers", "puzzle_indices", "group_indices")
ROW_MAKER_MODULES = {"arc": "datasets.arc_rows", "sudoku": "datasets.sudoku", "maze": "datasets.maze"}
_ROWS_PER_CHUNK = 8192


class RowIndex(NamedTuple):
    """Which rows to make, all int64 [n]; indices are local to one split of one dataset."""

    group: np.ndarray  # index of the group in the split
    puzzle: np.ndarray  # index of the puzzle in the split
    variant: np.ndarray  # index of the puzzle within its group; 0 is the unaugmented puzzle
    example: np.ndarray  # index of the example within the puzzle


class RowMaker(Protocol):
    """``make_rows`` of a kind: fills ``inputs`` and ``labels``, uint8 [n, seq_len], with tokens.

    ``base`` and ``plan`` are the arrays of the `SplitPlan`, read-only. A row must be a function of these
    arrays and of its own `RowIndex` entries alone, and every cell of it must be written. Labels hold the pad
    token 0 where the loader is to ignore them. Called from threads: numba ``nogil`` inside.
    """

    def __call__(
        self,
        base: Mapping[str, np.ndarray],
        plan: Mapping[str, np.ndarray],
        index: RowIndex,
        inputs: np.ndarray,
        labels: np.ndarray,
    ) -> None: ...


@dataclass(frozen=True)
class SplitPlan:
    """One split, before storage: P puzzles in G groups (a group is a base puzzle with its augmentations)."""

    puzzle_identifiers: np.ndarray  # [P] index into the identifiers
    puzzle_indices: np.ndarray  # [P + 1] first row of each puzzle, from 0
    group_indices: np.ndarray  # [G + 1] first puzzle of each group, from 0
    base: Mapping[str, np.ndarray]  # base grids, laid out as the kind's row maker wants
    plan: Mapping[str, np.ndarray]  # how to augment them (a seed is an array of one uint64)


@dataclass(frozen=True)
class BuildSummary:
    """What `write_dataset` wrote."""

    out_dir: Path
    rows: dict[str, int]
    puzzles: dict[str, int]
    groups: dict[str, int]
    identifiers: int
    bytes: int
    dataset_hash: str

    def describe(self, seconds: float) -> str:
        """The lines a builder prints when it is done."""
        splits = [
            f"  {split}: {self.groups[split]:,} groups, {self.puzzles[split]:,} puzzles, {rows:,} rows"
            for split, rows in self.rows.items()
        ]
        total = f"  {self.identifiers:,} identifiers, {self.bytes / 1e6:,.1f} MB, {seconds:.1f} s"
        return "\n".join([f"built {self.out_dir}", *splits, total, f"  hash {self.dataset_hash}"])


def row_maker(kind: str) -> RowMaker:
    """The row maker of a kind; imported when first needed, so that no kind pays for another's."""
    return cast(RowMaker, importlib.import_module(ROW_MAKER_MODULES[kind]).make_rows)


def make_tokens(
    kind: str, seq_len: int, split: SplitPlan, puzzle: np.ndarray, example: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels, uint8 [n, seq_len], of example ``example[i]`` of ``puzzle[i]``, both int64 [n]."""
    group = np.searchsorted(split.group_indices, puzzle, side="right") - 1
    variant = puzzle - np.asarray(split.group_indices[group], np.int64)
    inputs = np.empty((puzzle.size, seq_len), np.uint8)
    labels = np.empty_like(inputs)
    row_maker(kind)(split.base, split.plan, RowIndex(group, puzzle, variant, example), inputs, labels)
    return inputs, labels


def check_output_dir(out_dir: Path, overwrite: bool) -> None:
    """`InputError` if a build could not be put at ``out_dir``; builders call it before the long work."""
    named = f"--output-dir {out_dir}"
    check_folder(out_dir, named)
    if not out_dir.is_dir() or not any(out_dir.iterdir()):
        return
    if not overwrite:
        raise InputError(f"{named} is not empty; add --overwrite or give another directory")
    if not (out_dir / "identifiers.json").is_file():
        raise InputError(f"{named} is not empty and no data set, so it is not replaced; give another directory")


def write_dataset(
    out_dir: Path,
    *,
    identifiers: Sequence[str],
    test_puzzles: Mapping[str, Any] | None,
    splits: Mapping[str, SplitPlan],
    kind: Kind,
    grid: tuple[int, int],
    box: tuple[int, int] | None,
    vocab_size: int,
    seq_len: int,
    storage: Storage,
    provenance: dict[str, Any],
    overwrite: bool,
) -> BuildSummary:
    """Writes the dataset aside and renames it to ``out_dir``, so that a directory is whole or absent.

    ``identifiers[0]`` is the blank. ``provenance`` is saved as given: keep paths of this machine's output and
    times out of it, so that equal builds are equal byte for byte. Raises `InputError` if ``out_dir`` is taken
    or the disk refuses.
    """
    header = {"kind": kind, "grid": grid, "box": box, "vocab_size": vocab_size, "seq_len": seq_len}
    names = json.dumps(list(identifiers), ensure_ascii=False, separators=(",", ":")).encode()
    tasks = None if test_puzzles is None else json.dumps(test_puzzles, separators=(",", ":")).encode()
    dataset_hash = _content_hash(json.dumps(header).encode(), names, tasks or b"", splits)
    with _directory_aside(out_dir, overwrite) as aside:
        (aside / "identifiers.json").write_bytes(names)
        if tasks is not None:
            (aside / "test_puzzles.json").write_bytes(tasks)
        for split_name, split in splits.items():
            groups, puzzles, rows = _counts(split)
            metadata = PuzzleDatasetMetadata(
                pad_id=0, ignore_label_id=0, blank_identifier_id=0, vocab_size=vocab_size, seq_len=seq_len,
                num_puzzle_identifiers=len(identifiers), total_groups=groups,
                mean_puzzle_examples=rows / max(puzzles, 1), total_puzzles=puzzles, sets=[SET_NAME],
                kind=kind, grid=grid, box=box, storage=storage, dataset_hash=dataset_hash,
                provenance=provenance,
            )  # fmt: skip
            _write_split(aside / split_name, split, metadata)
        written = sum(file.stat().st_size for file in aside.rglob("*") if file.is_file())
    counts = {name: _counts(split) for name, split in splits.items()}
    return BuildSummary(
        out_dir,
        groups={name: count[0] for name, count in counts.items()},
        puzzles={name: count[1] for name, count in counts.items()},
        rows={name: count[2] for name, count in counts.items()},
        identifiers=len(identifiers),
        bytes=written,
        dataset_hash=dataset_hash,
    )


def _counts(split: SplitPlan) -> tuple[int, int, int]:
    return len(split.group_indices) - 1, len(split.puzzle_indices) - 1, int(split.puzzle_indices[-1])


def _write_split(split_dir: Path, split: SplitPlan, metadata: PuzzleDatasetMetadata) -> None:
    split_dir.mkdir()
    for name in INDEX_ARRAYS:
        np.save(split_dir / f"{SET_NAME}__{name}.npy", getattr(split, name).astype(np.int32))
    if metadata.storage == "compact":
        for part in ("base", "plan"):
            for name, array in getattr(split, part).items():
                np.save(split_dir / f"{SET_NAME}__{part}_{name}.npy", array)
    else:
        _write_all_rows(split_dir, split, metadata)
    (split_dir / "dataset.json").write_text(metadata.model_dump_json(indent=2, exclude_none=True) + "\n")


def _write_all_rows(split_dir: Path, split: SplitPlan, metadata: PuzzleDatasetMetadata) -> None:
    assert metadata.kind is not None
    rows = int(split.puzzle_indices[-1])
    header = {"descr": "|u1", "fortran_order": False, "shape": (rows, metadata.seq_len)}
    with (
        open(split_dir / f"{SET_NAME}__inputs.npy", "wb") as inputs_file,
        open(split_dir / f"{SET_NAME}__labels.npy", "wb") as labels_file,
    ):
        # Plain writes, not a memory map: a full disk must be an error and not a bus error.
        np.lib.format.write_array_header_1_0(inputs_file, header)
        np.lib.format.write_array_header_1_0(labels_file, header)
        for start in range(0, rows, _ROWS_PER_CHUNK):
            row = np.arange(start, min(start + _ROWS_PER_CHUNK, rows))
            puzzle = np.searchsorted(split.puzzle_indices, row, side="right") - 1
            example = row - np.asarray(split.puzzle_indices[puzzle], np.int64)
            inputs, labels = make_tokens(metadata.kind, metadata.seq_len, split, puzzle, example)
            inputs_file.write(inputs.data)
            labels_file.write(labels.data)


def _content_hash(header: bytes, names: bytes, tasks: bytes, splits: Mapping[str, SplitPlan]) -> str:
    """Hash of what determines the rows, so that both storages of the same build have the same hash."""
    digest = hashlib.sha256()
    for block in (header, names, tasks):
        digest.update(hashlib.sha256(block).digest())
    for split_name, split in sorted(splits.items()):
        arrays = {name: getattr(split, name).astype(np.int32) for name in INDEX_ARRAYS}
        arrays |= {f"base_{name}": array for name, array in split.base.items()}
        arrays |= {f"plan_{name}": array for name, array in split.plan.items()}
        for name, array in sorted(arrays.items()):
            digest.update(f"{split_name}/{name} {array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@contextmanager
def _directory_aside(out_dir: Path, overwrite: bool) -> Iterator[Path]:
    """A new directory beside ``out_dir`` that takes its name if the block ends well, else vanishes."""
    check_output_dir(out_dir, overwrite)
    target = out_dir.resolve()
    aside = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        yield aside
        _replace_directory(aside, target)
    except OSError as error:
        raise InputError(f"--output-dir {out_dir} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _replace_directory(new: Path, out_dir: Path) -> None:
    replaced = out_dir.with_name(f"{out_dir.name}.old-{os.getpid()}")
    had_one = out_dir.exists()
    if had_one:
        os.replace(out_dir, replaced)
    try:
        os.replace(new, out_dir)
    except OSError:
        if had_one:
            os.replace(replaced, out_dir)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
