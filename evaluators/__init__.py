"""Evaluators turn predictions into figures and files; they never see a model, only arrays."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

from datasets.common import InputError, PuzzleDatasetMetadata
from evaluators.common import Evaluator


class Source(Protocol):
    """One folder of a data set: what an evaluator needs to know to read its rows."""

    @property
    def path(self) -> Path: ...
    @property
    def metadata(self) -> PuzzleDatasetMetadata: ...
    @property
    def id_offset(self) -> int: ...
    @property
    def task_names(self) -> Collection[str] | None: ...


def build_evaluators(specs: Sequence[dict[str, Any]], sources: Sequence[Source]) -> list[tuple[str, Evaluator]]:
    """The evaluators named ``{"name": "module@Class", **options}``, each with a label for its figures and files.

    Rows are told apart by their identifiers: each source that has some gets an evaluator of its own, labelled with the
    directory's name where there are several. Sources without identifiers share one. Labels are unique or empty.
    Raises `InputError` for an evaluator of another kind of puzzle.
    """
    chosen = [source for source in sources if source.metadata.num_puzzle_identifiers > 1] or list(sources[:1])
    shapes = {(source.metadata.grid, source.metadata.box) for source in sources}
    if specs and len(chosen) < len(sources) and len(shapes) > 1:
        raise InputError("the data sets have grids of different shapes, which one evaluator cannot score together")
    labels = [source.path.name for source in chosen]
    labels = [f"{label}-{i}" if labels.count(label) > 1 else label for i, label in enumerate(labels)]
    evaluators = []
    for spec in specs:
        module, _, class_name = spec["name"].partition("@")
        for source in chosen:
            if source.metadata.kind not in (None, module):
                raise InputError(
                    f"evaluators: {spec['name']} cannot score {source.path}, which holds {source.metadata.kind} puzzles"
                    f"; use evaluator={source.metadata.kind}"
                )
        cls = getattr(importlib.import_module(f"{__name__}.{module}"), class_name)
        options = {key: value for key, value in spec.items() if key != "name"}
        for label, source in zip(labels, chosen, strict=True):
            evaluator = cls(
                source.path, source.metadata, id_offset=source.id_offset, task_names=source.task_names, **options
            )
            evaluators.append((label if len(chosen) > 1 else "", evaluator))
    return evaluators
