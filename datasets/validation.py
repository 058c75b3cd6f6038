"""Checks of a dataset's arrays, made before they are used: each error names the file and the first bad index.

The numba row makers do not check bounds, so what these functions let through must be safe to index with.

Usage: ``check_index_arrays(split, metadata, "data/arc1/train/all__")``
"""

from __future__ import annotations

import math
import tokenize
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from datasets.common import ARC_COLOURS, DIHEDRAL_TRANSFORMS, InputError, PuzzleDatasetMetadata
from datasets.maze import START
from datasets.storage import SplitPlan

_REMEDY = "rebuild the dataset"
_MAX_CHECKED_CELLS = 2**28
_CHUNK_ROWS = 4096


def read_array(path: Path, *, mapped: bool = False) -> np.ndarray:
    """The array of an ``.npy`` file, memory-mapped if asked; never unpickles."""
    try:
        if mapped:
            return np.lib.format.open_memmap(path, mode="r")
        with open(path, "rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; {_REMEDY} or correct the path") from None
    except (ValueError, EOFError, OSError, MemoryError, SyntaxError, tokenize.TokenError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is truncated or not an .npy array ({reason}); {_REMEDY}") from None


def check_index_arrays(split: SplitPlan, metadata: PuzzleDatasetMetadata, prefix: str) -> None:
    """Checks the three arrays that both storages have; ``prefix`` is the common start of the files' names."""
    for name in ("puzzle_identifiers", "puzzle_indices", "group_indices"):
        array = getattr(split, name)
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            _fail(prefix, name, f"is {array.dtype} {list(array.shape)}, expected a list of integers")
    for name in ("puzzle_indices", "group_indices"):
        array = getattr(split, name)
        if array.size < 1 or array[0] != 0:
            _fail(prefix, name, "must begin with 0")
    falls, stays = np.diff(split.puzzle_indices) < 0, np.diff(split.group_indices) <= 0
    _first_bad(prefix, "puzzle_indices", falls, "is below the entry before it", 1)
    _first_bad(prefix, "group_indices", stays, "is not above the entry before it", 1)
    puzzles, identifiers = split.puzzle_indices.size - 1, split.puzzle_identifiers.size
    if split.group_indices[-1] != puzzles:
        _fail(prefix, "group_indices", f"ends with {split.group_indices[-1]}, expected {puzzles} (puzzles)")
    if identifiers != puzzles:
        _fail(prefix, "puzzle_identifiers", f"has {identifiers} entries, expected {puzzles} (puzzles)")
    limit = metadata.num_puzzle_identifiers
    outside = (split.puzzle_identifiers < 0) | (split.puzzle_identifiers >= limit)
    _first_bad(prefix, "puzzle_identifiers", outside, f"is outside 0..{limit - 1} (num_puzzle_identifiers)")


def check_tokens(tokens: np.ndarray, rows: int, metadata: PuzzleDatasetMetadata, path: str) -> None:
    """Checks that ``tokens`` is integer [rows, seq_len] with entries in the vocabulary.

    An array too large to read at start-up is checked at evenly spaced rows; the reader checks the others
    when it gets them.
    """
    expected = (rows, metadata.seq_len)
    if tokens.shape != expected or not np.issubdtype(tokens.dtype, np.integer):
        raise InputError(
            f"{path} is {tokens.dtype} {list(tokens.shape)}, expected integers {list(expected)}; {_REMEDY}"
        )
    stride = 1 + tokens.size // _MAX_CHECKED_CELLS
    for start in range(0, rows, _CHUNK_ROWS * stride):
        index = np.arange(start, min(start + _CHUNK_ROWS * stride, rows), stride)
        check_vocabulary(tokens[index[0] : index[-1] + 1 : stride], index, metadata, path)


def check_vocabulary(tokens: np.ndarray, row: np.ndarray, metadata: PuzzleDatasetMetadata, path: str) -> None:
    """Checks tokens [n, seq_len], which are rows ``row`` [n] of the file."""
    if tokens.size == 0 or (tokens.max() < metadata.vocab_size and tokens.min() >= 0):
        return
    bad = np.argwhere((tokens >= metadata.vocab_size) | (tokens < 0))[0]
    raise InputError(
        f"{path}: row {row[bad[0]]}, cell {bad[1]} holds token {tokens[tuple(bad)]}, outside "
        f"0..{metadata.vocab_size - 1} (vocab_size); {_REMEDY}"
    )


def check_base_rows(split: SplitPlan, metadata: PuzzleDatasetMetadata, prefix: str) -> None:
    """Base arrays of Sudoku and mazes: ``inputs`` and ``labels`` [G, seq_len], one row a group."""
    _require(split.base, "base", {"inputs", "labels"}, prefix)
    groups = split.group_indices.size - 1
    for name in ("inputs", "labels"):
        check_tokens(split.base[name], groups, metadata, f"{prefix}base_{name}.npy")
    sizes = np.diff(split.puzzle_indices)
    _first_bad(prefix, "puzzle_indices", sizes != 1, "does not leave its puzzle one example", 1)


def check_sudoku(split: SplitPlan, metadata: PuzzleDatasetMetadata, prefix: str) -> None:
    """Base rows, and a box that tiles the grid."""
    check_base_rows(split, metadata, prefix)
    _require(split.plan, "plan", {"seed", "box"}, prefix)
    box = split.plan["box"]
    _check_form(prefix, "plan_seed", split.plan["seed"], np.uint64, (1,))
    _first_bad(prefix, "plan_seed", split.plan["seed"] >= 2**63, "is not below 2**63")
    _check_form(prefix, "plan_box", box, np.int64, (2,))
    if int(box.prod()) ** 2 != metadata.seq_len or box.min() < 1:
        _fail(prefix, "plan_box", f"holds {box.tolist()}, no box of a grid of {metadata.seq_len} cells")
    if metadata.vocab_size != int(box.prod()) + 2:
        _fail(prefix, "plan_box", f"holds {box.tolist()}, but vocab_size is {metadata.vocab_size}")


def check_maze(split: SplitPlan, metadata: PuzzleDatasetMetadata, prefix: str) -> None:
    """Base rows that are square mazes with one start each, and no more variants than symmetries."""
    check_base_rows(split, metadata, prefix)
    _check_square(metadata, prefix)
    starts = (split.base["inputs"] == START).sum(axis=1)
    _first_bad(prefix, "base_inputs", starts != 1, "has not exactly one start")
    too_many = np.diff(split.group_indices) > DIHEDRAL_TRANSFORMS
    _first_bad(prefix, "group_indices", too_many, "gives a maze more variants than symmetries", 1)


def check_arc(split: SplitPlan, metadata: PuzzleDatasetMetadata, prefix: str) -> None:
    """Base grids and augmentation plan in the layout of `datasets.arc_rows`."""
    _require(split.base, "base", {"cells", "offsets", "shapes", "group_pairs"}, prefix)
    _require(split.plan, "plan", {"tid", "colours"}, prefix)
    cells, offsets, shapes = (split.base[name] for name in ("cells", "offsets", "shapes"))
    group_pairs, tid, colours = split.base["group_pairs"], split.plan["tid"], split.plan["colours"]
    puzzles, groups = split.puzzle_indices.size - 1, split.group_indices.size - 1
    _check_form(prefix, "base_group_pairs", group_pairs, np.int64, (groups + 1,))
    pairs = int(group_pairs[-1])
    _check_form(prefix, "base_cells", cells, np.uint8, (cells.size,))
    _check_form(prefix, "base_offsets", offsets, np.int64, (2 * pairs,))
    _check_form(prefix, "base_shapes", shapes, np.uint8, (2 * pairs, 2))
    _check_form(prefix, "plan_tid", tid, np.uint8, (puzzles,))
    _check_form(prefix, "plan_colours", colours, np.uint8, (puzzles, ARC_COLOURS))
    if "translation_seed" in split.plan:
        _check_form(prefix, "plan_translation_seed", split.plan["translation_seed"], np.uint64, (1,))
    if group_pairs[0] != 0:
        _fail(prefix, "base_group_pairs", "must begin with 0")
    _check_square(metadata, prefix)
    sizes = shapes[:, 0].astype(np.int64) * shapes[:, 1]
    _first_bad(prefix, "base_cells", cells >= ARC_COLOURS, "is not a colour")
    too_large = shapes.max(axis=1).astype(np.int64) ** 2 > metadata.seq_len
    _first_bad(prefix, "base_shapes", too_large, "is larger than the canvas")
    _first_bad(prefix, "base_offsets", (offsets < 0) | (offsets + sizes > cells.size), "leaves the cells")
    _first_bad(prefix, "plan_tid", tid >= DIHEDRAL_TRANSFORMS, "is no symmetry")
    permutation = (np.sort(colours, axis=1) == np.arange(ARC_COLOURS)).all(axis=1)
    _first_bad(prefix, "plan_colours", ~permutation, "is no permutation of the colours")
    group_of_puzzle = np.repeat(np.arange(groups), np.diff(split.group_indices))
    wrong = np.diff(split.puzzle_indices) != np.diff(group_pairs)[group_of_puzzle]
    _first_bad(prefix, "puzzle_indices", wrong, "does not agree with base_group_pairs", 1)


PLAN_CHECKS: dict[str, Callable[[SplitPlan, PuzzleDatasetMetadata, str], None]] = {
    "arc": check_arc,
    "sudoku": check_sudoku,
    "maze": check_maze,
}


def _require(arrays: Mapping[str, np.ndarray], part: str, names: set[str], prefix: str) -> None:
    for name in sorted(names - arrays.keys()):
        _fail(prefix, f"{part}_{name}", "does not exist")


def _check_square(metadata: PuzzleDatasetMetadata, prefix: str) -> None:
    if math.isqrt(metadata.seq_len) ** 2 != metadata.seq_len:
        raise InputError(f"{Path(prefix).parent}/dataset.json: seq_len {metadata.seq_len} is no square; {_REMEDY}")


def _check_form(prefix: str, name: str, array: np.ndarray, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        found, wanted = f"{array.dtype} {list(array.shape)}", f"{np.dtype(dtype)} {list(shape)}"
        _fail(prefix, name, f"is {found}, expected {wanted}")


def _first_bad(prefix: str, name: str, bad: np.ndarray, what: str, shift: int = 0) -> None:
    if bad.any():
        _fail(prefix, name, f"entry {int(np.argmax(bad)) + shift} {what}")


def _fail(prefix: str, name: str, what: str) -> None:
    raise InputError(f"{prefix}{name}.npy {what}; {_REMEDY}")
