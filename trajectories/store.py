"""Captured trajectories on disk: a folder of compressed chunks and ``capture.json``, which says what they are.

A chunk is an ``.npz`` of some hundred rows at most, of which arrays are read one by one; nothing is pickled.
``capture.json`` is written last, so that its presence says that the capture is whole. docs/trajectories.md describes
both.

    with TrajectoryWriter(folder, header) as writer: writer.add("all", rows)
    capture = open_capture(folder); capture.array("step_preds")  # [n, T, seq_len], in the order of the data set
"""

from __future__ import annotations

import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from datasets.common import ARC_COLOUR_0, InputError, PuzzleDatasetMetadata, read_json
from datasets.maze import CHARACTERS
from evaluators.common import write_text

FOLDER, HEADER = "trajectories", "capture.json"
NO_ROW = -1  # the index of a puzzle that is in no data set
FORMAT: Literal["trm-lab trajectories"] = "trm-lab trajectories"

# A chunk is read as a whole, array by array: large enough to compress well, small enough to hold several in memory.
CHUNK_BYTES, CHUNK_ROWS = 64 * 2**20, 512
CHUNK_NAME = r"rank\d+-\d+\.npz"
# The fastest setting: the capture of an evaluation may take five per cent of its time.
COMPRESSION_LEVEL = 1

Rows = dict[str, NDArray]


class Chunk(pydantic.BaseModel, extra="forbid", frozen=True):
    """One file of rows, all of one set of the data."""

    file: str = pydantic.Field(pattern=f"^{CHUNK_NAME}$")
    set_name: str
    rows: int


class DataFolder(pydantic.BaseModel, extra="forbid", frozen=True):
    """A folder of the data, as `evaluators.Source` has it: `metadata` of its test split, what was added to its
    identifiers, and the tasks kept of it, None for all."""

    path: Path
    metadata: PuzzleDatasetMetadata
    id_offset: int
    task_names: list[str] | None


class Header(pydantic.BaseModel, extra="forbid", frozen=True):
    """What the rows are. `symbols` names the tokens; `grid` and `box` are rows and columns; `dataset_rows` counts those
    of the whole test split, so that a capture of fewer is known for one; `evaluators` are those that were asked for
    figures. `provenance` says what was run on what, by hashes too."""

    format: Literal["trm-lab trajectories"] = FORMAT
    version: Literal[1] = 1
    kind: Literal["arc", "sudoku", "maze"] | None
    grid: tuple[int, int]
    box: tuple[int, int] | None
    vocab_size: int
    symbols: list[str]
    max_steps: int
    depth: Literal["eval", "h_cycle", "layer"]
    dataset_rows: int
    dataset_hash: str
    sources: list[DataFolder]
    evaluators: list[dict[str, Any]] = []
    provenance: dict[str, Any]
    chunks: list[Chunk] = []


def symbols(kind: str | None, vocab_size: int) -> list[str]:
    """What each token stands for, as it would be written: digits, colours, the characters of a maze."""
    if kind == "sudoku":
        return ["", ".", *(str(token - 1) for token in range(2, vocab_size))]
    if kind == "maze":
        return ["", *CHARACTERS]
    if kind == "arc":
        return ["", "|", *(str(token - ARC_COLOUR_0) for token in range(ARC_COLOUR_0, vocab_size))]
    return [str(token) for token in range(vocab_size)]


class TrajectoryWriter:
    """Writes one rank's rows, and on rank 0 the header; a context manager that leaves whole captures or none.

    Every rank is given the same `folder`; `gather` hands rank 0 what all of them know, and returns None elsewhere.
    A chunk is compressed in a thread of its own, while the next one is captured. A disk that refuses is told at the
    end, as an `InputError` on rank 0: the work in the block is done by then and need not be lost.
    """

    def __init__(self, folder: Path, header: Header, *, rank: int = 0, gather: Any = lambda item: [item]):
        self._folder, self._header, self._rank, self._gather = folder, header, rank, gather
        self._aside = folder.with_name(f".{folder.name}.tmp")
        self._chunks: list[Chunk] = []
        self._pending: list[Rows] = []
        self._pending_rows, self._pending_set = 0, ""
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._refusal: str | None = None

    def __enter__(self) -> TrajectoryWriter:
        check_target(self._folder)
        if self._rank == 0:
            shutil.rmtree(self._aside, ignore_errors=True)
            self._aside.mkdir(parents=True)
        self._gather(None)  # nobody writes before the folder is there
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            self._thread.shutdown()
            if self._rank == 0:  # the others may still be writing into it; once it is whole, it has another name
                shutil.rmtree(self._aside, ignore_errors=True)

    def _finish(self) -> None:
        self._flush()
        self._settle()
        gathered = self._gather((self._chunks, self._refusal))
        if gathered is None:
            return
        refusal = next((refusal for _, refusal in gathered if refusal is not None), None)
        if refusal is None:
            header = self._header.model_copy(update={"chunks": [chunk for chunks, _ in gathered for chunk in chunks]})
            try:
                write_text(self._aside / HEADER, header.model_dump_json(indent=1))
                check_target(self._folder)  # it may be another one by now
                if self._folder.exists():
                    shutil.rmtree(self._folder)
                os.replace(self._aside, self._folder)
            except OSError as error:
                refusal = str(error.strerror)
        if refusal is not None:
            raise InputError(f"{self._folder} cannot be written: {refusal}; make room or capture less")

    def add(self, set_name: str, rows: Rows) -> None:
        """Rows of the set, arrays with the row as their first dimension, `row_index` among them."""
        if set_name != self._pending_set:
            self._flush()
            self._pending_set = set_name
        count = len(rows["row_index"])
        row_bytes = sum(array.nbytes for array in rows.values()) / max(1, count)
        most = int(max(1, min(CHUNK_ROWS, CHUNK_BYTES / row_bytes))) if count else 1
        start = 0
        while start < count:
            taken = min(count - start, most - self._pending_rows)
            self._pending.append({key: array[start : start + taken] for key, array in rows.items()})
            self._pending_rows += taken
            start += taken
            if self._pending_rows >= most:
                self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        name = f"rank{self._rank}-{len(self._chunks):05}.npz"
        parts = self._pending
        rows = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} if len(parts) > 1 else parts[0]
        self._settle()
        if self._refusal is None:
            self._writing = self._thread.submit(_write_archive, self._aside / name, rows)
            self._chunks.append(Chunk(file=name, set_name=self._pending_set, rows=self._pending_rows))
        self._pending, self._pending_rows = [], 0

    def _settle(self) -> None:
        """Wait until the last chunk is on disk."""
        if self._writing is None:
            return
        try:
            self._writing.result()
        except OSError as error:
            self._refusal = str(error.strerror)
        self._writing = None


def check_target(folder: Path) -> None:
    """`InputError` unless a capture may be written there: where nothing is yet, into an empty folder, or in the place
    of an older capture, of which nothing but its own files may be lost."""
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise InputError(f"{folder} is no folder that a capture could replace: move it away or name another")
    if Path.cwd().is_relative_to(folder.resolve()):
        raise InputError(f"{folder} is where this program runs, which a capture cannot replace: name a folder in it")
    names = sorted(path.name for path in folder.iterdir())
    foreign = next((name for name in names if name != HEADER and not re.fullmatch(CHUNK_NAME, name)), None)
    if foreign is not None or (names and HEADER not in names):
        raise InputError(
            f"{folder} holds {foreign or names[0]}, which is not of a capture and would be lost: name a new folder"
        )


def _write_archive(path: Path, rows: Rows) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=COMPRESSION_LEVEL) as archive:
        for key, array in rows.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


class Capture:
    """A capture, read array by array. Rows are in the order of the data set, whoever wrote them and when.

    `row_index` int64 [n] are their indices in the test split, ascending; `set_names` their sets.
    """

    def __init__(self, folder: Path, header: Header):
        self.folder, self.header = folder, header
        indices = [self._read(chunk, "row_index") for chunk in header.chunks]
        found = np.concatenate(indices) if indices else np.zeros(0, np.int64)
        self._order = np.argsort(found, kind="stable")
        self._starts = np.cumsum([0, *(chunk.rows for chunk in header.chunks)])
        self.row_index: NDArray[np.int64] = found[self._order]

    def __len__(self) -> int:
        return len(self.row_index)

    @property
    def complete(self) -> bool:
        """Whether every row of the test split is here, so that the evaluation's figures can be had again."""
        return np.array_equal(self.row_index, np.arange(self.header.dataset_rows))

    @property
    def names(self) -> list[str]:
        """The arrays there are."""
        if not self.header.chunks:
            return []
        with self._archive(self.header.chunks[0]) as archive:
            return [Path(name).stem for name in archive.namelist()]

    def positions(self, rows: Sequence[int]) -> NDArray[np.int64]:
        """Where rows of the data set are in the arrays; `InputError` for the first that was not captured."""
        wanted = np.asarray(rows, np.int64)
        position = np.searchsorted(self.row_index, wanted)
        missing = (position == len(self)) | (self.row_index[np.minimum(position, len(self) - 1)] != wanted)
        if missing.any():
            there = f"{self.row_index[0]} to {self.row_index[-1]}" if len(self) else "none"
            raise InputError(
                f"row {wanted[missing][0]} is not in {self.folder}: it has {len(self)} rows, of the test split's "
                f"{self.header.dataset_rows} ({there})"
            )
        return position

    def array(self, name: str, positions: NDArray[np.int64] | None = None) -> NDArray:
        """All rows of an array, or those at `positions` of the order of the data set; only their chunks are read."""
        wanted = self._order if positions is None else self._order[positions]
        chunk_of = np.searchsorted(self._starts, wanted, side="right") - 1
        result: NDArray | None = None
        for i in np.unique(chunk_of):
            part = self._read(self.header.chunks[i], name)
            here = np.flatnonzero(chunk_of == i)
            if result is None:
                result = np.empty((len(wanted), *part.shape[1:]), part.dtype)
            result[here] = part[wanted[here] - self._starts[i]]
        return np.zeros(0) if result is None else result

    def chunks(self, names: Sequence[str]) -> Iterator[tuple[str, Rows]]:
        """Every chunk's set and some of its arrays, in the order of writing."""
        for chunk in self.header.chunks:
            yield chunk.set_name, {name: self._read(chunk, name) for name in names}

    def _archive(self, chunk: Chunk) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.folder / chunk.file)
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{self.folder / chunk.file} cannot be read ({error}); capture again") from None

    def _read(self, chunk: Chunk, name: str) -> NDArray:
        with self._archive(chunk) as archive:
            if f"{name}.npy" not in archive.namelist():
                raise InputError(
                    f"{self.folder} has no {name}: captured at depth {self.header.depth}; see capture.depth and "
                    "eval_save_outputs"
                )
            try:
                with archive.open(f"{name}.npy") as file:
                    array = np.lib.format.read_array(file, allow_pickle=False)
            except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile) as error:
                raise InputError(f"{self.folder / chunk.file} is damaged ({error}); capture again") from None
        if len(array) != chunk.rows:
            raise InputError(f"{self.folder / chunk.file} is damaged: {name} has {len(array)} rows; capture again")
        return array


def open_capture(path: str | Path) -> Capture:
    """The capture in a folder, or in the folder ``trajectories`` of an evaluation; `InputError` where there is none."""
    path = Path(path)
    folder = next((place for place in (path, path / FOLDER) if (place / HEADER).is_file()), None)
    if folder is None:
        raise InputError(
            f"{path} holds no captured trajectories: make them with evaluate.py checkpoint=… capture.depth=eval, and "
            f"name the folder with {HEADER} or the one above it"
        )
    content = read_json(folder / HEADER)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(
            f"{folder / HEADER} is no header of trajectories; name a folder that evaluate.py captured into"
        )
    try:
        return Capture(folder, Header.model_validate(content))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{folder / HEADER}: key {key}: {first['msg']}; capture again") from None
