"""The tasks behind the rows of an ARC capture: names, demonstrations and whether the data is still the captured one.

Usage: ``tasks = Tasks.of(open_capture(folder)); tasks.name(identifier), tasks.demonstrations(identifier)``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from datasets.common import (
    ARC_COLOUR_0,
    InputError,
    dihedral_transform,
    load_identifiers,
    load_metadata,
    load_test_puzzles,
)
from evaluators.arc_names import AugmentedNames, read_names
from trajectories.store import Capture, DataFolder, Header

Grid = list[list[int]]


@dataclass(frozen=True)
class _Source:
    path: Path
    offset: int

    @cached_property
    def names(self) -> AugmentedNames:
        return read_names(load_identifiers(self.path), self.path)

    @cached_property
    def puzzles(self) -> dict[str, Any]:
        return load_test_puzzles(self.path)


class Tasks:
    """Of the dataset folders, in their order; each has the identifiers from its offset on."""

    def __init__(self, folders: Sequence[DataFolder]):
        self._sources = [_Source(folder.path, folder.id_offset) for folder in folders]

    @staticmethod
    def of(capture: Capture, data_root: Path | None = None) -> Tasks | None:
        """The tasks of a capture of ARC; None for other puzzles.

        They are read where they were, or from `data_root` where they are now. Raises `InputError` where the folder is
        missing or holds another data set.
        """
        if capture.header.kind != "arc":
            if data_root is not None:
                raise InputError(f"--data-root {data_root} has no effect, as {capture.folder} is not of ARC: drop it")
            return None
        return Tasks(data_folders(capture.header, data_root))

    def name(self, identifier: int) -> str:
        """The task's name, with "augmented" where the row is not the task as it was given."""
        source, own = self._find(identifier)
        plain = source.names.dihedral[own] == 0 and (source.names.inverse_colours[own] == np.arange(10)).all()
        return source.names.base[own] if plain else f"{source.names.base[own]} (augmented)"

    def demonstrations(self, identifier: int) -> list[tuple[Grid, Grid]]:
        """Pairs of input and output, as tokens, turned and coloured as the rows of this identifier are."""
        source, own = self._find(identifier)
        colour_of = np.argsort(source.names.inverse_colours[own])

        def seen(grid: Grid) -> Grid:
            turned = dihedral_transform(np.asarray(grid), int(source.names.dihedral[own]))
            return (colour_of[turned] + ARC_COLOUR_0).tolist()

        pairs = source.puzzles.get(source.names.base[own], {"train": []})["train"]
        return [(seen(pair["input"]), seen(pair["output"])) for pair in pairs]

    def _find(self, identifier: int) -> tuple[_Source, int]:
        for source in reversed(self._sources):
            if source.offset < identifier < source.offset + len(source.names):
                return source, identifier - source.offset
        return self._sources[0], 0


def data_folders(header: Header, data_root: Path | None = None) -> list[DataFolder]:
    """The folders that a capture's rows came from, or `data_root` where the only one is now.

    Raises `InputError` where a folder is missing or holds another data set than was captured.
    """
    if data_root is not None and len(header.sources) > 1:
        named = ", ".join(str(source.path) for source in header.sources)
        raise InputError(f"--data-root {data_root} is one folder, captured were {named}: leave it out")
    folders = []
    for source in header.sources:
        path = data_root or source.path
        if not path.is_dir():
            raise InputError(f"{path}, the data set of the capture, does not exist: name it with --data-root")
        theirs, ours = load_metadata(path / "test").dataset_hash, source.metadata.dataset_hash
        if theirs != ours:
            raise InputError(
                f"{path} is not the data set that was captured (hash {str(theirs)[:12]}, captured {str(ours)[:12]}): "
                "name the right one with --data-root"
            )
        folders.append(source.model_copy(update={"path": path}))
    return folders
