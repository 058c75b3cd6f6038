"""All the puzzle names of an ARC data set as arrays: base task, symmetry and inverse colours by identifier.

`datasets.common.split_augmented_name` reads one name; a data set has a million, so this reads them in bulk.

Usage: names = read_names(load_identifiers(data_path), data_path); names.dihedral[identifiers]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.common import ARC_COLOURS, DIHEDRAL_TRANSFORMS, InputError

_SEPARATOR = "|||"
_PLAIN_SUFFIX = ["t0", "0123456789"]
_SYMMETRIES = {f"t{index}": index for index in range(DIHEDRAL_TRANSFORMS)}


@dataclass(frozen=True)
class AugmentedNames:
    """Indexed by identifier; index 0 is the blank puzzle.

    `base` list of N names, `dihedral` [N] int64 in 0..7, `inverse_colours` [N, 10] uint8: the original colour
    of each colour of the augmented puzzle.
    """

    base: list[str]
    dihedral: np.ndarray
    inverse_colours: np.ndarray

    def __len__(self) -> int:
        return len(self.base)


def read_names(identifiers: list[str], data_path: Path) -> AugmentedNames:
    """Parse names like base or base|||t{symmetry}|||{ten digits}; `InputError` names the first bad one."""
    parts = [name.rsplit(_SEPARATOR, 2) if _SEPARATOR in name else [name, *_PLAIN_SUFFIX] for name in identifiers]
    for index, suffix in enumerate(parts):
        if len(suffix) != 3 or suffix[1] not in _SYMMETRIES or len(suffix[2]) != ARC_COLOURS:
            raise _bad_name(data_path, index, identifiers[index])
    digits = "".join(suffix[2] for suffix in parts).encode("ascii", "replace")
    new_colours = np.frombuffer(digits, np.uint8).reshape(-1, ARC_COLOURS) - ord("0")
    is_permutation = (np.sort(new_colours, axis=1) == np.arange(ARC_COLOURS)).all(axis=1)
    if not is_permutation.all():
        index = int(np.argmin(is_permutation))
        raise _bad_name(data_path, index, identifiers[index])
    return AugmentedNames(
        base=[suffix[0] for suffix in parts],
        dihedral=np.array([_SYMMETRIES[suffix[1]] for suffix in parts], np.int64),
        inverse_colours=np.argsort(new_colours, axis=1).astype(np.uint8),
    )


def _bad_name(data_path: Path, index: int, name: str) -> InputError:
    return InputError(
        f'{data_path / "identifiers.json"}: name {index} is "{name}", expected a task id, alone or followed '
        f"by {_SEPARATOR}t0..t{DIHEDRAL_TRANSFORMS - 1}{_SEPARATOR}ten colours; rebuild the dataset"
    )
