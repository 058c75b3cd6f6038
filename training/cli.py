"""How every entry point starts and ends: exit codes, and wrong input as one line instead of a traceback.

Usage: ``if __name__ == "__main__": sys.exit(run_cli(main, sys.argv[1:]))``
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable

from datasets.common import InputError
from training.files import is_disk_refusal

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

# What torchrun needs to notice that rank 0 has ended and to end the others.
_RANK_0_SPEAKS_FIRST_S = 3.0


def run_cli(main: Callable[[list[str]], None], argv: list[str]) -> int:
    """Run `main` and return the exit code: 0, 2 after an `InputError` or a disk that takes no more (one line on
    stderr), 130 after Ctrl-C.

    Anything else is a defect of the program and keeps its traceback.
    """
    try:
        main(argv)
    except InputError as error:
        _report(error)
        return EXIT_BAD_INPUT
    except OSError as error:
        if not is_disk_refusal(error):
            raise
        _report(f"{error.filename or 'what was to be written'}: {error.strerror}; make room, or write elsewhere")
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


def script_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """The parser of ``scripts/name.py``, which explains itself by its docstring."""
    return argparse.ArgumentParser(
        prog=f"python -m scripts.{name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def warn(text: str) -> None:
    """A line on stderr, said by one process."""
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {text}", file=sys.stderr, flush=True)


def _report(error: InputError | str) -> None:
    """Rank 0 says it. Another rank waits to be ended with rank 0, and speaks only if it failed alone."""
    rank = int(os.environ.get("RANK", "0"))
    who = "error"
    if rank > 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(_RANK_0_SPEAKS_FIRST_S)
        who = f"error (rank {rank})"
    print(f"{who}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
