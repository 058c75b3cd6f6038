"""Puzzle lists in files: one puzzle a line, or CSV with the columns ``question`` and ``answer``; plain or
gzip.

The CSV layout is that of Sudoku-Extreme and Maze-Hard on the Hugging Face hub
(``source,question,answer,rating``); `hub_files` downloads those where the optional ``huggingface_hub``
package and a network exist.

Usage: ``puzzles = read_puzzle_list(Path("train.csv.gz"), max_rows=1000)``
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from datasets.common import InputError

_SAMPLE_COUNTER = 0x5A3D1E  # keeps this draw apart from others of the same seed


@dataclass(frozen=True)
class PuzzleList:
    """The puzzles of one file, all of one length."""

    path: Path
    lines: np.ndarray  # int64 [n] line number of each puzzle, from 1
    questions: np.ndarray  # uint8 [n, length] ASCII codes
    answers: np.ndarray | None  # the same, None if the file has none
    sha256: str

    def fail(self, row: int, problem: str) -> NoReturn:
        """Raises the `InputError` about one puzzle."""
        raise InputError(f"{self.path} line {self.lines[row]}: {problem}")

    def measured(self, side: Callable[[int], int]) -> int:
        """The side of the grids, by a function of their number of cells whose `InputError` gets the file's name."""
        try:
            return side(self.questions.shape[1])
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from None

    def source(self) -> dict[str, object]:
        """What a dataset records about where it came from."""
        return {"file": self.path.name, "sha256": self.sha256, "rows": len(self.lines)}


def read_puzzle_list(path: Path, *, max_rows: int | None = None, sample_seed: int | None = None) -> PuzzleList:
    """The puzzles of a file; its first ``max_rows``, or as many at random (in file order) given a
    ``sample_seed``.

    A file whose first line has a comma is CSV with a header. Raises `InputError` on an unreadable or empty
    file, a missing column, a row of another length than the first and characters beyond ASCII.
    """
    limit = max_rows if sample_seed is None else None
    lines: list[int] = []
    questions, answers = bytearray(), bytearray()
    for line, question, answer in _rows(path):
        if lines and (len(question) * len(lines) != len(questions)):
            expected = len(questions) // len(lines)
            raise InputError(f"{path} line {line}: {len(question)} cells, the first puzzle has {expected}")
        if answer is not None and len(answer) != len(question):
            raise InputError(f"{path} line {line}: answer of {len(answer)} cells to a question of {len(question)}")
        lines.append(line)
        questions += question
        answers += answer or b""
        if len(lines) == limit:
            break
    if not lines or not questions:
        raise InputError(f"{path} holds no puzzle; give one a line, or CSV with columns question and answer")
    puzzles = PuzzleList(
        path,
        np.array(lines),
        _table(questions, lines),
        _table(answers, lines) if answers else None,
        _sha256(path),
    )
    return puzzles if sample_seed is None else _sample(puzzles, max_rows, sample_seed)


def hub_files(repository: str) -> tuple[Path, Path]:
    """Downloads train.csv and test.csv of a hub dataset; `InputError` without the package or a network."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise InputError(f"--hub {repository} needs the package huggingface_hub; pip install it") from None
    try:
        train, test = (hf_hub_download(repository, f"{s}.csv", repo_type="dataset") for s in ("train", "test"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--hub {repository}: download failed ({type(error).__name__}: {reason})") from None
    return Path(train), Path(test)


def _rows(path: Path) -> Iterator[tuple[int, bytes, bytes | None]]:
    """Line number, question and answer of each row."""
    try:
        with (
            gzip.open(path, "rt", encoding="ascii", newline="")
            if path.suffix == ".gz"
            else open(path, encoding="ascii", newline="") as file
        ):
            first = file.readline()
            file.seek(0)
            yield from _csv_rows(path, file) if "," in first else _text_rows(file)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; correct the path") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not ASCII text (byte {error.object[error.start]:#04x}); convert it") from None
    except (EOFError, zlib.error) as error:
        raise InputError(f"{path} is a damaged gzip file ({error}); fetch it again") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def _text_rows(file: Iterable[str]) -> Iterator[tuple[int, bytes, None]]:
    for line, text in enumerate(file, start=1):
        if puzzle := text.strip():
            yield line, puzzle.encode(), None


def _csv_rows(path: Path, file: Iterable[str]) -> Iterator[tuple[int, bytes, bytes]]:
    reader = csv.reader(file)
    header = next(reader)
    for name in ("question", "answer"):
        if name not in header:
            raise InputError(f'{path} line 1: no column "{name}" among {", ".join(header)}; add a header line')
    question, answer = header.index("question"), header.index("answer")
    try:
        for row in reader:
            if row:
                if len(row) <= max(question, answer):
                    raise InputError(f"{path} line {reader.line_num}: {len(row)} columns, the header has {len(header)}")
                yield reader.line_num, row[question].encode(), row[answer].encode()
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num}: {error}") from None


def _table(cells: bytearray, lines: list[int]) -> np.ndarray:
    return np.frombuffer(cells, np.uint8).reshape(len(lines), -1)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sample(puzzles: PuzzleList, max_rows: int | None, seed: int) -> PuzzleList:
    total = len(puzzles.lines)
    random = np.random.Generator(np.random.Philox(key=seed, counter=_SAMPLE_COUNTER))
    chosen = np.sort(random.choice(total, min(total, max_rows or total), replace=False))
    answers = None if puzzles.answers is None else puzzles.answers[chosen]
    return PuzzleList(puzzles.path, puzzles.lines[chosen], puzzles.questions[chosen], answers, puzzles.sha256)
