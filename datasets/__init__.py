"""Puzzle datasets of this repository: builders, storage and the loader.

The name is shared with the Hugging Face library; run from the repository root, where this package wins.

Usage: ``from datasets.puzzle_dataset import PuzzleDataset``
"""

from __future__ import annotations

from typing import NoReturn


def __getattr__(name: str) -> NoReturn:
    raise AttributeError(
        f"module 'datasets' has no attribute '{name}': this is the puzzle package of this repository "
        f"({__file__}), not the Hugging Face library of the same name. To use that library run from another "
        "directory; to use this one import its modules, e.g. datasets.puzzle_dataset"
    )
