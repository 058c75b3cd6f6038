"""The original code's checkpoints: one ``state_dict`` in a ``.pt`` file, and no more.

Such files are pickles. They are read with ``weights_only=True``, which refuses everything but tensors, so
that a file from a stranger cannot run code.

Usage: ``loss_head.load_state_dict(read_torch_checkpoint("step_518071.pt"))``
"""

from __future__ import annotations

import pickle
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from datasets.common import InputError
from training.files import written_aside

# The original saves compiled models under this prefix, others without.
COMPILED_PREFIX = "_orig_mod."

# What the reader raises on damaged bytes, found by damaging files: see tests/training/test_legacy.py.
_DAMAGE = (
    pickle.UnpicklingError,
    struct.error,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    MemoryError,
    OverflowError,
    AssertionError,
)


def read_torch_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Parameter name ("model.inner...", without the prefix of compiled models) -> tensor on the CPU.

    Raises `InputError` naming the file if it is missing, damaged, or holds anything but named tensors.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the file's age and format; the result is checked below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); correct the path") from None
    except _DAMAGE as error:
        reason = "holds more than tensors" if "GLOBAL" in str(error) else "is damaged or no .pt file"
        raise InputError(f"{path} {reason}; it was not loaded, give a plain state_dict") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a state_dict of named tensors")
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InputError(f"{path}: entry {key!r} is a {type(value).__name__}, not a named tensor")
        name = key.replace(COMPILED_PREFIX, "")
        if name in state:
            raise InputError(f"{path}: {name} is there twice, with and without the prefix {COMPILED_PREFIX}")
        state[name] = value
    return state


def write_torch_checkpoint(
    path: str | Path, state_dict: Mapping[str, Tensor], *, compiled_prefix: bool = False
) -> None:
    """Write a file that the original code loads; its ``load_checkpoint`` expects names of compiled models
    (``compiled_prefix=True``) unless compilation is disabled there. `OSError` if the disk refuses."""
    prefix = COMPILED_PREFIX if compiled_prefix else ""
    content = {prefix + name: tensor.detach().cpu().clone() for name, tensor in state_dict.items()}
    with written_aside(Path(path)) as aside, aside.open("wb") as file:
        torch.save(content, file)
