"""The programs as a user starts them: what the tests beside this one see in one process holds for real ones too."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.bad_inputs.sandbox import TINY, Sandbox, assert_one_error, make_bomb

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = [
    (
        f"{ROOT}/pretrain.py {TINY} data_paths=[nowhere] checkpoint_path=new",
        "nowhere/train/dataset.json does not exist",
    ),
    (f"{ROOT}/evaluate.py checkpoint=bomb.pt arch=trm data_paths=[sudoku]", "bomb.pt holds more than tensors"),
    ("-m datasets.build_sudoku_dataset --output-dir run --size 4", "--output-dir run is not empty"),
    ("-m scripts.export_checkpoint run nowhere/out.pt", "nowhere is not a directory"),
]


@pytest.mark.parametrize(("program", "message"), PROGRAMS)
def test_programs(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, program: str, message: str) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    torch.save({"weight": make_bomb()}, "bomb.pt")
    before = sandbox.contents()
    ended = subprocess.run([sys.executable, *shlex.split(program)], capture_output=True, text=True, check=False)
    assert_one_error(ended.returncode, ended.stderr, message)
    assert ended.stdout == ""
    assert sandbox.contents() == before
