#!/usr/bin/env bash
# Makes .venv in the repository root and installs what constraints.txt pins into it; does nothing when that is done.
#
#   bash scripts/setup_env.sh          what training and evaluation need
#   bash scripts/setup_env.sh dev,hub  extras of pyproject.toml on top
set -euo pipefail
cd "$(dirname "$0")/.."

extra="${1:-}"
python=.venv/bin/python

# A stamp for each set of extras records the files that the installation came from.
stamp=".venv/.installed${extra:+-$extra}"
wanted="$(cat pyproject.toml constraints.txt | cksum)"
if [[ -x $python && -f $stamp && "$(cat "$stamp")" == "$wanted" ]]; then
    exit 0
fi

if [[ ! -x $python ]]; then
    for candidate in python3 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            base="$candidate"
            break
        fi
    done
    if [[ -z "${base:-}" ]]; then
        echo "error: no Python 3.11 or newer with the venv module on PATH" >&2
        exit 2
    fi
    echo "creating .venv with $("$base" --version)"
    "$base" -m venv .venv
fi

# torch first and on its own. Where a CPU build is on offer it satisfies `==` and is preferred to the larger default
# build; with an NVIDIA driver `===` asks for the default build, which is the CUDA one.
equals="=="
if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
    equals="==="
fi
torch_version="$(sed -n 's/^torch==//p' constraints.txt)"
echo "installing torch $torch_version and the pinned dependencies into .venv"
"$python" -m pip install --quiet "torch$equals$torch_version" -c constraints.txt
"$python" -m pip install --quiet -e ".${extra:+[$extra]}" -c constraints.txt
echo "$wanted" >"$stamp"
