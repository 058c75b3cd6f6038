"""Small command-line tools over the packages, run as ``python -m scripts.NAME`` from the repository root."""

import training.waiting  # noqa: F401
