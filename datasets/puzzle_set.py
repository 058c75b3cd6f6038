"""One set of one split of a dataset directory: opened, checked, and read by (puzzle, example).

Reads both storages: expanded rows are looked up in memory-mapped files, compact rows are made on the fly.

Usage: ``inputs, labels = PuzzleSet(Path("data/arc1/train"), "all", metadata).tokens(puzzle, example)``
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from datasets.common import InputError, PuzzleDatasetMetadata
from datasets.storage import INDEX_ARRAYS, SplitPlan, make_tokens
from datasets.validation import PLAN_CHECKS, check_index_arrays, check_tokens, check_vocabulary, read_array

_HASHED_ROWS = 4096


class PuzzleSet:
    """Attributes: ``puzzle_identifiers`` [P], ``puzzle_indices`` [P + 1], ``group_indices`` [G + 1], int64.

    Raises `InputError` at construction if a file is missing, truncated or inconsistent.
    """

    def __init__(self, split_dir: Path, name: str, metadata: PuzzleDatasetMetadata):
        self.name = name
        self.metadata = metadata
        self._prefix = f"{split_dir}/{name}__"
        compact = metadata.storage == "compact"
        identifiers, puzzles, groups = (read_array(Path(f"{self._prefix}{a}.npy")) for a in INDEX_ARRAYS)
        self._split = SplitPlan(
            identifiers,
            puzzles,
            groups,
            base=_read_arrays(split_dir, f"{name}__base_") if compact else {},
            plan=_read_arrays(split_dir, f"{name}__plan_") if compact else {},
        )
        check_index_arrays(self._split, metadata, self._prefix)
        self.puzzle_identifiers = identifiers.astype(np.int64)
        self.puzzle_indices = puzzles.astype(np.int64)
        self.group_indices = groups.astype(np.int64)
        self.num_rows = int(self.puzzle_indices[-1])
        if compact:
            if metadata.kind is None:
                raise InputError(f"{split_dir}/dataset.json: compact storage needs the key kind; rebuild it")
            PLAN_CHECKS[metadata.kind](self._split, metadata, self._prefix)
        else:
            self._rows = [read_array(Path(path), mapped=True) for path in self._row_files()]
            for rows, path in zip(self._rows, self._row_files(), strict=True):
                check_tokens(rows, self.num_rows, metadata, path)

    @property
    def num_groups(self) -> int:
        return self.group_indices.size - 1

    @property
    def num_puzzles(self) -> int:
        return self.puzzle_indices.size - 1

    def tokens(self, puzzle: np.ndarray, example: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and labels, integers [n, seq_len], of example ``example[i]`` of ``puzzle[i]``, int64 [n]."""
        if self.metadata.storage == "compact":
            assert self.metadata.kind is not None
            return make_tokens(self.metadata.kind, self.metadata.seq_len, self._split, puzzle, example)
        row = self.puzzle_indices[puzzle] + example
        inputs, labels = (rows[row] for rows in self._rows)
        for tokens, path in zip((inputs, labels), self._row_files(), strict=True):
            check_vocabulary(tokens, row, self.metadata, path)
        return inputs, labels

    def content_hash(self) -> str:
        """Hash of an expanded set without a recorded hash: its index arrays and evenly spaced rows."""
        digest = hashlib.sha256()
        sample = np.linspace(0, self.num_rows - 1, min(self.num_rows, _HASHED_ROWS)).astype(np.int64)
        puzzle = np.searchsorted(self.puzzle_indices, sample, side="right") - 1
        rows = self.tokens(puzzle, sample - self.puzzle_indices[puzzle])
        for array in (self.puzzle_identifiers, self.puzzle_indices, self.group_indices, *rows):
            digest.update(f"{array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def _row_files(self) -> tuple[str, str]:
        return f"{self._prefix}inputs.npy", f"{self._prefix}labels.npy"


def _read_arrays(split_dir: Path, prefix: str) -> dict[str, np.ndarray]:
    files = sorted(split_dir.glob(f"{prefix}*.npy"))
    return {file.stem.removeprefix(prefix): read_array(file) for file in files}
