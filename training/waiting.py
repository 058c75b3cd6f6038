"""How PyTorch's threads wait for each other on a CPU. It has to be said before PyTorch is imported.

A thread that has done its part of an operation turns in circles until the others have done theirs, by default for
milliseconds. Where something else wants the cores, those are what the others are waiting for: on two cores beside one
busy process a step of the quickstart took nearly twice as long (docs/performance.md). A thousand turns are
microseconds. What a user has set stays.

    import training.waiting  # noqa: F401
"""

from __future__ import annotations

import os

TURNS = "1000"

if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = TURNS
