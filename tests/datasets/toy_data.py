"""Small dataset directories for the tests of the loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from datasets.arc import Task, parse_task
from datasets.arc_augment import plan_splits
from datasets.storage import Storage, write_dataset

SIDE = 4

# Groups of puzzles by their numbers of examples.
GROUPS = [[2, 2], [1], [3, 3, 3], [2]]
UNEVEN = [[2, 1], [4], [0, 3, 1], [2]]


def write_original(
    out: Path,
    split: str,
    groups: list[list[int]],
    num_identifiers: int | None = None,
    value: int = 0,
    **metadata: Any,
) -> Path:
    """A directory as the original's builders write it: ``groups`` holds the number of examples of every puzzle.

    Row r of the split has r + ``value`` in its first two cells (as base-10 digits + 1) and a padding label.
    """
    folder = out / split
    folder.mkdir(parents=True)
    sizes = [size for group in groups for size in group]
    rows, puzzles = sum(sizes), len(sizes)
    inputs = np.ones((rows, 5), np.uint8)
    inputs[:, 0], inputs[:, 1] = np.divmod(np.arange(rows) + value, 10)
    inputs[:, :2] += 1
    labels = inputs.copy()
    labels[:, 4] = 0
    named = num_identifiers is not None
    arrays: dict[str, np.ndarray] = {
        "inputs": inputs,
        "labels": labels,
        "puzzle_identifiers": np.arange(1, puzzles + 1, dtype=np.int32) if named else np.zeros(puzzles, np.int32),
        "puzzle_indices": np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32),
        "group_indices": np.concatenate([[0], np.cumsum([len(g) for g in groups])]).astype(np.int32),
    }
    for name, array in arrays.items():
        np.save(folder / f"all__{name}.npy", array)
    content = {
        "pad_id": 0, "ignore_label_id": 0, "blank_identifier_id": 0, "vocab_size": 12, "seq_len": 5,
        "num_puzzle_identifiers": num_identifiers or 1, "total_groups": len(groups),
        "mean_puzzle_examples": rows / puzzles, "total_puzzles": len(groups), "sets": ["all"],
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(content | metadata))
    names = [
        f"task{g}" + ("" if p == 0 else f"|||t{p}|||0123456789")
        for g, group in enumerate(groups)
        for p in range(len(group))
    ]
    (out / "identifiers.json").write_text(json.dumps(["<blank>", *names] if named else ["<blank>"]))
    return out


def row_numbers(batch: dict[str, np.ndarray]) -> list[int]:
    """What `write_original` has put into the rows."""
    return ((batch["inputs"][:, 0] - 1) * 10 + batch["inputs"][:, 1] - 1).tolist()


def write_arc(out: Path, tasks: dict[str, list[str]], num_aug: int = 3, storage: Storage = "compact") -> Path:
    """A small ARC dataset; ``tasks`` are the ids of every subset, "evaluation" is for testing."""

    def task(name: str) -> Task:
        rng = np.random.default_rng(sum(map(ord, name)))
        pairs = [{k: rng.integers(0, 10, (2, 2)).tolist() for k in ("input", "output")} for _ in range(3)]
        return parse_task(name, {"train": pairs[:2], "test": pairs[2:]}, "toy")

    subsets = {name: [task(task_id) for task_id in ids] for name, ids in tasks.items()}
    identifiers, splits = plan_splits(subsets, "evaluation", num_aug, seed=0)
    write_dataset(
        out, identifiers=identifiers, test_puzzles={t.task_id: t.to_json() for t in subsets["evaluation"]},
        splits=splits, kind="arc", grid=(SIDE, SIDE), box=None, vocab_size=12, seq_len=SIDE * SIDE,
        storage=storage, provenance={}, overwrite=False,
    )  # fmt: skip
    return out
