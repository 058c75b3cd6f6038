"""The entry points of the hybrid tell OpenMP what they have to before PyTorch is imported, as all do."""

from __future__ import annotations

from training.waiting import TURNS

import pytest

from tests.training.test_waiting import at_import_of_torch


@pytest.mark.parametrize("module", ["hybrid_train", "hybrid_describe", "hybrid_pipeline.solve"])
def test_threads_are_told_before_torch_is_there(module: str) -> None:
    assert at_import_of_torch(module) == TURNS
