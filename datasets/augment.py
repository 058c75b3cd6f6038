"""What the row makers of all puzzle kinds share: counter-based random numbers and the dihedral cell map.

Every draw is a hash of counters (splitmix64, Steele et al. 2014), so a row depends only on the seed and on
its own position, never on the order in which rows are made.

Usage, inside a numba function: ``digit = counter_below(seed, group, variant, draw, 9)``
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numba
import numpy as np

Integer: TypeAlias = int | np.integer[Any]


@numba.njit(cache=True, nogil=True, inline="always")
def _mix(x: np.uint64) -> np.uint64:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@numba.njit(cache=True, nogil=True)
def counter_hash(seed: Integer, a: Integer, b: Integer, c: Integer) -> np.uint64:
    """64 random bits that are a function of the four counters alone."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    x = _mix(np.uint64(seed) + golden)
    x = _mix((x ^ np.uint64(a)) + golden)
    x = _mix((x ^ np.uint64(b)) + golden)
    return _mix((x ^ np.uint64(c)) + golden)


@numba.njit(cache=True, nogil=True)
def counter_below(seed: Integer, a: Integer, b: Integer, c: Integer, bound: Integer) -> int:
    """Uniform integer in [0, bound), 1 <= bound < 2**32, from the four counters."""
    high = counter_hash(seed, a, b, c) >> np.uint64(32)
    return int(np.int64((high * np.uint64(bound)) >> np.uint64(32)))


@numba.njit(cache=True, nogil=True)
def counter_shuffle(values: np.ndarray, seed: Integer, a: Integer, b: Integer, first_draw: int) -> int:
    """Shuffles ``values`` [n] in place with draws c = first_draw, ...; returns the next unused c."""
    draw = first_draw
    for i in range(values.size - 1, 0, -1):
        j = counter_below(seed, a, b, draw, i + 1)
        values[i], values[j] = values[j], values[i]
        draw += 1
    return draw


@numba.njit(cache=True, nogil=True)
def dihedral_source(tid: Integer, row: Integer, col: Integer, rows: Integer, cols: Integer) -> tuple[Integer, Integer]:
    """Cell of the grid [rows, cols] that symmetry ``tid`` moves to (row, col); order of `dihedral_transform`.

    The transformed grid is [rows, cols] for tid 0, 2, 4, 5 and [cols, rows] for 1, 3, 6, 7.
    """
    if tid == 1:
        return col, cols - 1 - row
    if tid == 2:
        return rows - 1 - row, cols - 1 - col
    if tid == 3:
        return rows - 1 - col, row
    if tid == 4:
        return row, cols - 1 - col
    if tid == 5:
        return rows - 1 - row, col
    if tid == 6:
        return col, row
    if tid == 7:
        return rows - 1 - col, cols - 1 - row
    return row, col
