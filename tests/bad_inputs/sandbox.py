"""A folder with good data sets and runs to spoil, commands run in it, and the check that one was refused.

Usage: ``sandbox.assert_refused("pretrain", f"{TINY} lr=fast", "lr=fast: expected a number")``
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import diffusion_train
import evaluate
import pretrain
from datasets import build_arc_dataset, build_maze_dataset, build_sudoku_dataset
from scripts import (
    analyze_trm_arc_results,
    export_checkpoint,
    extract_single_puzzle_trajectory,
    generate_report_from_preds,
)
from training.cli import run_cli

TINY = (
    "arch.hidden_size=16 arch.num_heads=2 arch.H_cycles=1 arch.L_cycles=1 arch.L_layers=1 arch.halt_max_steps=2 "
    "arch.puzzle_emb_len=1 device=cpu global_batch_size=4 epochs=4 eval_interval=4 lr_warmup_steps=0 evaluators=[]"
)

TINY_HEAD = (
    "diffusion.num_layers=1 global_batch_size=4 max_steps=4 eval_puzzles=2 sampler.steps=[1] harvest.ring_gib=0.001 "
    "lr_warmup_steps=0 device=cpu logger.progress_bar=false logger.plots=false"
)

COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "pretrain": lambda argv: run_cli(pretrain.main, argv),
    "diffusion_train": lambda argv: run_cli(diffusion_train.main, argv),
    "evaluate": lambda argv: run_cli(evaluate.main, argv),
    "export": lambda argv: run_cli(export_checkpoint.main, argv),
    "extract": lambda argv: run_cli(extract_single_puzzle_trajectory.main, argv),
    "report": lambda argv: run_cli(generate_report_from_preds.main, argv),
    "analyze": lambda argv: run_cli(analyze_trm_arc_results.main, argv),
    "build_arc": build_arc_dataset.main,
    "build_sudoku": build_sudoku_dataset.main,
    "build_maze": build_maze_dataset.main,
}

# Relative path -> bytes of a file, target of a link, None for a folder.
Contents = dict[str, bytes | str | None]

# "error: ..." is ours, "program: error: ..." that of argparse.
_ERROR_LINE = re.compile(r"^(?:\S.*: )?error: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Sandbox:
    """Holds ``sudoku`` and ``arc`` (data sets), ``run`` and ``arc_run`` (a run on each, at step 8 and 5), and
    ``head_run`` (a diffusion head with ``run`` as its teacher, at step 4).

    It is the working directory, so that its contents have short names in commands and in messages.
    """

    root: Path

    def assert_refused(self, command: str, arguments: str, message: str) -> None:
        """Run a command and check: exit code 2, one error line that `message` (a regex) is found in, no file
        anywhere in the sandbox made, changed or removed. An exception that gets through fails the test."""
        before = self.contents()
        code, stderr = run(command, arguments)
        assert_one_error(code, stderr, message)
        assert self.contents() == before

    def restore(self, contents: Contents) -> None:
        """Undo whatever a test did, at the cost of what it did."""
        now = self.contents()
        for name in sorted(now.keys() - contents.keys(), reverse=True):
            path = self.root / name
            path.rmdir() if now[name] is None else path.unlink()
        for name, content in contents.items():
            path = self.root / name
            if name in now and now[name] == content:
                continue
            if content is None:
                path.mkdir()
            elif isinstance(content, bytes):
                path.write_bytes(content)
            else:
                path.symlink_to(content)

    def contents(self) -> Contents:
        return {path.relative_to(self.root).as_posix(): _content(path) for path in sorted(self.root.rglob("*"))}


def run(command: str, arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a command run in this process, its arguments written as in a shell."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as stderr:
        try:
            code: Any = COMMANDS[command](shlex.split(arguments))
        except SystemExit as end:  # argparse
            code = end.code
    return code, stderr.getvalue()


def assert_one_error(code: int, stderr: str, message: str) -> None:
    """What a user must see of bad input: the reason, last and once, and a failing exit code."""
    errors = _ERROR_LINE.findall(stderr)
    assert (code, len(errors)) == (2, 1), stderr
    assert re.search(message, errors[0]), errors[0]
    assert stderr.rstrip().endswith(errors[0]), stderr
    assert "Traceback" not in stderr


def _content(path: Path) -> bytes | str | None:
    if path.is_symlink():
        return os.readlink(path)
    return None if path.is_dir() else path.read_bytes()


def edit_json(path: str, **changes: Any) -> None:
    """Set keys of a JSON object; a value of None removes the key."""
    content = json.loads(Path(path).read_text()) | changes
    Path(path).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def edit_array(path: str, edit: Callable[[np.ndarray], np.ndarray | None]) -> None:
    """Replace an array by what `edit` returns, or by what it did to its argument if it returns nothing."""
    array = np.load(path)
    edited = edit(array)
    np.save(path, array if edited is None else edited)


def set_entry(index: Any, value: Any) -> Callable[[np.ndarray], None]:
    """An edit for `edit_array`."""

    def edit(array: np.ndarray) -> None:
        array[index] = value

    return edit


def cut(path: str, keep: float = 0.5) -> None:
    """Truncate a file to a share of its bytes."""
    os.truncate(path, int(Path(path).stat().st_size * keep))


def flip_bit(path: str, position: float = 0.9) -> None:
    """Change one bit at a relative position."""
    content = bytearray(Path(path).read_bytes())
    content[int(len(content) * position)] ^= 1
    Path(path).write_bytes(content)


def make_bomb(mark: str = "owned") -> Any:
    """An object whose unpickling creates the file `mark` in the sandbox."""

    class Bomb:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {mark}",)

    return Bomb()


def write_npy_of_shape(path: str, shape: tuple[int, ...]) -> None:
    """An .npy file whose header promises more than the file holds."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    Path(path).write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(64))
