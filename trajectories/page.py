"""Pages of one HTML file: a template of the folder ``web``, with its style, its scripts and its data inside.

Usage: ``write_page(path, "replay.html", ("theme.js", "replay.js"), title="Sudoku", payload=data)``
"""

from __future__ import annotations

import html
import json
import string
from collections.abc import Sequence
from pathlib import Path

from evaluators.common import write_text
from trajectories.store import Header

WEB = Path(__file__).resolve().parent / "web"
KINDS = {"sudoku": "Sudoku", "maze": "Maze", "arc": "ARC"}


def write_page(path: Path, template: str, scripts: Sequence[str], **parts: str) -> None:
    """Fill a template in, its style and scripts included. `parts` are text and are escaped, but for those whose name
    ends in payload, which are HTML or base64 already."""
    page = string.Template((WEB / template).read_text(encoding="utf-8"))
    escaped = {key: text if key.endswith("payload") else html.escape(text) for key, text in parts.items()}
    script = "\n".join((WEB / name).read_text(encoding="utf-8") for name in scripts)
    css = (WEB / "page.css").read_text(encoding="utf-8").strip()
    write_text(path, page.substitute(css=css, script=script.strip(), **escaped))


def subtitle(header: Header) -> str:
    """One line: which model, at which step, on which data."""
    known = header.provenance
    parts = [
        str(known.get("architecture", "")).removesuffix("_ACTV1"),
        f"step {known['step']}" if "step" in known else "",
        "data " + ", ".join(source.path.name for source in header.sources),
        f"weights {known['weights_sha256'][:8]}" if "weights_sha256" in known else "",
    ]
    return " · ".join(part for part in parts if part)


def provenance_text(header: Header) -> str:
    """All that is known of the run, for the foot of a page."""
    return json.dumps(header.provenance | {"dataset_hash": header.dataset_hash}, indent=1, ensure_ascii=False)
