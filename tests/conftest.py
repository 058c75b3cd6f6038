"""Settings of every test run. They must be in place before torch, matplotlib and Triton are imported."""

from __future__ import annotations

import os
import shutil

# Two pytest workers share the cores; and sums in a fixed order make figures repeatable.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # GPU kernels are interpreted
