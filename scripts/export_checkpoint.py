"""Turn a checkpoint into a ``.pt`` file that the original TinyRecursiveModels code loads.

Usage: ``python -m scripts.export_checkpoint runs/NAME OUT.pt --ema --compiled-prefix``
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from torch import Tensor

from datasets.common import InputError
from training.checkpoint import load_checkpoint, resolve_checkpoint
from training.cli import run_cli
from training.legacy import write_torch_checkpoint
from training.manifest import read_manifest


def export(checkpoint: Path, out: Path, *, ema: bool, compiled_prefix: bool) -> int:
    """Write the weights (with ``ema``, averaged where there is an average) and return the training step."""
    directory = resolve_checkpoint(checkpoint)
    present = {record.group for record in read_manifest(directory).files.values()}
    if ema and "ema" not in present:
        raise InputError(f"{directory} has no averaged weights; leave out --ema")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent} is not a directory; create it or correct the output path")
    loaded = load_checkpoint(directory, groups=["model", "ema"] if ema else ["model"])
    state: dict[str, Tensor] = dict(loaded.groups["model"])
    averages = loaded.groups.get("ema", {})
    for name in averages:
        if name not in state:
            raise InputError(f"{directory}: the average {name} belongs to no weight of the model")
    state.update(averages)
    try:
        write_torch_checkpoint(out, state, compiled_prefix=compiled_prefix)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}") from None
    return loaded.step


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.export_checkpoint", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint directory or a run directory")
    parser.add_argument("out", type=Path, help="the .pt file to write")
    parser.add_argument("--ema", action="store_true", help="export the averaged weights")
    parser.add_argument(
        "--compiled-prefix", action="store_true", help="name weights as in a compiled model (_orig_mod.)"
    )
    args = parser.parse_args(argv)
    step = export(args.checkpoint, args.out, ema=args.ema, compiled_prefix=args.compiled_prefix)
    print(f"wrote {args.out}: weights of step {step}{' (averaged)' if args.ema else ''}")


if __name__ == "__main__":
    sys.exit(run_cli(main, sys.argv[1:]))
