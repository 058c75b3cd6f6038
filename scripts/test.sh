#!/usr/bin/env bash
# Everything a change must pass, from a fresh clone on: set-up, lint, format, types, tests.
#
#   bash scripts/test.sh               all of it
#   bash scripts/test.sh tests/models  the same checks, with pytest's arguments (paths, -k, -x) of your own
set -euo pipefail
cd "$(dirname "$0")/.."

bash scripts/setup_env.sh dev,diffusion,hybrid
export PATH="$PWD/.venv/bin:$PATH"

# One thread for each of the two pytest workers: more only fight over the cores.
export OMP_NUM_THREADS=1

ruff check .
ruff format --check .
mypy .
pytest -q -n 2 "$@"
