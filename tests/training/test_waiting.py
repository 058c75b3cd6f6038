"""What OpenMP is told is told before PyTorch, which reads it once, is imported."""

from __future__ import annotations

from training.waiting import TURNS

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Says what stands in the environment when torch is first asked for, and goes no further.
ASK = """
import os, sys
class Ask:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
            sys.exit()
sys.meta_path.insert(0, Ask())
import {module}
"""


def at_import_of_torch(module: str, **more: str) -> str:
    kept = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", ASK.format(module=module)]
    return subprocess.run(command, cwd=ROOT, env=kept | more, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("module", ["pretrain", "evaluate", "diffusion_train", "scripts.export_checkpoint"])
def test_threads_are_told_before_torch_is_there(module: str) -> None:
    assert at_import_of_torch(module) == TURNS


def test_what_a_user_has_set_stays() -> None:
    assert at_import_of_torch("pretrain", GOMP_SPINCOUNT="7") == "7"
    assert at_import_of_torch("pretrain", OMP_WAIT_POLICY="ACTIVE") == "None"
