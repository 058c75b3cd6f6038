"""Tiny Recursive Models and their relatives: plain PyTorch modules that know nothing of data, training or config files.

from models import load_class
TRM = load_class("recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1")
model = TRM({"batch_size": 8, "seq_len": 81, "vocab_size": 11, "num_puzzle_identifiers": 1, "forward_dtype": "float32"})
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any


def load_class(spec: str) -> Any:
    """Resolve ``"module@Class"``, the module being relative to this package.

    Raises ``ValueError`` naming the part that does not exist.
    """
    module_name, separator, class_name = spec.partition("@")
    if not (separator and module_name and class_name):
        raise ValueError(f"{spec!r} is not of the form 'module@Class', e.g. 'losses@ACTLossHead'")
    qualified = f"{__name__}.{module_name}"
    try:
        found = importlib.util.find_spec(qualified)
    except ModuleNotFoundError:  # a missing parent package
        found = None
    if found is None:
        raise ValueError(f"{spec!r}: there is no module {qualified!r}")
    module = importlib.import_module(qualified)
    if not hasattr(module, class_name):
        raise ValueError(f"{spec!r}: module {qualified!r} has no class {class_name!r}")
    return getattr(module, class_name)
