"""These tests belong to `hybrid_pipeline`: where that folder was deleted there is nothing to test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from hybrid_pipeline.descriptions import Listener

ROOT = Path(__file__).resolve().parent.parent.parent

PARTS = ("hybrid_pipeline/__init__.py", "hybrid_train.py", "hybrid_describe.py")
collect_ignore_glob = [] if all((ROOT / part).is_file() for part in PARTS) else ["*"]


# What is imported inside is missing where the folder is; this file is read there as well.
@pytest.fixture(scope="session")
def teller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny hybrid model on instructed grids."""
    from tests.hybrid_pipeline.test_hybrid_train import run

    folder = tmp_path_factory.mktemp("teller")
    assert run(folder, "max_steps=1") == 0
    return folder


@pytest.fixture(scope="session")
def listener(teller: Path) -> Listener:
    from hybrid_pipeline.descriptions import open_listener

    return open_listener(str(teller), torch.device("cpu"))
