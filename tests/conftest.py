"""Settings of every test run. They must be in place before torch and matplotlib are imported."""

from __future__ import annotations

import os

# Two pytest workers share the cores; and sums in a fixed order make figures repeatable.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
