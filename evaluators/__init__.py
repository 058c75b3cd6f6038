"""Evaluators turn predictions into figures and files; they never see a model, only arrays."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

from datasets.common import PuzzleDatasetMetadata
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


class Sourced(Protocol):
    """A data set made of sources; kept this general so that evaluators do not import the loader."""

    @property
    def sources(self) -> Sequence[Source]: ...


def build_evaluators(specs: Sequence[dict[str, Any]], sources: Sequence[Source]) -> list[Evaluator]:
    """The evaluators named ``{"name": "module@Class", **options}``, one for each source."""
    evaluators = []
    for spec in specs:
        module, _, class_name = spec["name"].partition("@")
        cls = getattr(importlib.import_module(f"{__name__}.{module}"), class_name)
        options = {key: value for key, value in spec.items() if key != "name"}
        for source in sources:
            evaluators.append(
                cls(
                    source.path,
                    source.metadata,
                    id_offset=source.id_offset,
                    task_names=source.task_names,
                    **options,
                )
            )
    return evaluators
