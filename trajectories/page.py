"""Pages of one HTML file: a template of the folder ``web`` inside ``base.html``, with style, scripts and data.

Usage: ``write_page(path, "replay.html", ("payload.js", "replay.js"), title="Sudoku", subtitle="…", payload=data)``
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
    """Fill a template in, and the base of all pages with it. `parts`, which have `title` and `subtitle`, are text and
    are escaped, but for those whose name ends in payload, which are HTML or base64 already."""
    escaped = {key: text if key.endswith("payload") else html.escape(text) for key, text in parts.items()}
    content = string.Template(_part(template)).substitute(escaped)
    script = "\n".join(_part(name) for name in ("theme.js", *scripts)).strip()
    base = string.Template(_part("base.html"))
    title, subtitle = escaped["title"], escaped["subtitle"]
    write_text(
        path,
        base.substitute(css=_part("page.css").strip(), script=script, content=content, title=title, subtitle=subtitle),
    )


def _part(name: str) -> str:
    return (WEB / name).read_text(encoding="utf-8")


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
