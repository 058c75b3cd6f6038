"""A page that plays puzzles being solved: one HTML file with everything in it, which opens from disk without a network.

Usage: ``write_replay(solves(capture, rows), Path("replay.html"), tasks=Tasks.of(capture))``
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.common import ARC_COLOUR_0, IGNORE_LABEL_ID, InputError
from evaluators.grid_drawing import ARC_PALETTE, MAZE_PALETTE
from evaluators.render import arc_extent
from trajectories.page import KINDS, provenance_text, subtitle, write_page
from trajectories.solve import Solve
from trajectories.store import Header
from trajectories.tasks import Tasks

NO_LABEL = 255
# Steps of confidence on the page: finer ones could not be seen, and cost twice the room.
CONFIDENCE_STEPS = 63


def write_replay(solves: Sequence[Solve], path: Path, tasks: Tasks | None = None, title: str | None = None) -> Path:
    """Write the page that plays `solves`, all of one capture; `tasks` name ARC's rows and show their demonstrations.

    Raises `InputError` where there is nothing to play or more kinds of cell than a page can hold.
    """
    if not solves:
        raise InputError(f"{path}: no puzzle to play")
    header = solves[0].header
    check_showable(header, path)
    rows, columns = header.grid
    name = KINDS.get(header.kind or "", "Puzzles")
    title = title or f"{name}{f' {rows}×{columns}' if header.kind != 'arc' else ''}: a puzzle being solved"
    write_page(
        path,
        "replay.html",
        ("payload.js", "grid.js", "chart.js", "replay.js"),
        title=title,
        subtitle=subtitle(header),
        provenance=provenance_text(header),
        payload=pack(solves, tasks),
    )
    return path


def check_showable(header: Header, path: Path) -> None:
    """`InputError` for more kinds of cell than the page `path` can hold."""
    if header.vocab_size >= NO_LABEL:
        raise InputError(f"{path}: a vocabulary of {header.vocab_size} is more than a page can show")


def grid_json(header: Header) -> dict[str, Any]:
    """What the page's painter needs to know of the grids."""
    palette: list[str | None] = [None] * header.vocab_size
    if header.kind == "arc":
        palette[ARC_COLOUR_0:] = ARC_PALETTE
    for token, colour in MAZE_PALETTE.items() if header.kind == "maze" else ():
        palette[token] = colour
    return {"kind": header.kind, "box": header.box, "symbols": header.symbols, "palette": palette}


def pack(solves: Sequence[Solve], tasks: Tasks | None, facts: Sequence[dict[str, Any]] | None = None) -> str:
    """The page's data, as ``web/payload.js`` reads it: deflated, in base64; `facts` go with the puzzles."""
    puzzles, blobs = [], []
    for i, solve in enumerate(solves):
        shown, extent = _shown(solve)
        extra = {} if facts is None else {"facts": facts[i]}
        puzzles.append(_puzzle_json(solve, shown, extent, tasks) | extra)
        labels = np.where(solve.labels == IGNORE_LABEL_ID, NO_LABEL, solve.labels)
        levels = np.rint(np.clip(solve.confidence, 0, 1) * CONFIDENCE_STEPS)
        still = [_bytes(cells[shown]) for cells in (solve.inputs, labels, solve.given)]
        moving = [_differences(frames[:, shown]) for frames in (solve.preds, levels)]
        blobs += still + moving
    scales = {"no_label": NO_LABEL, "confidence_steps": CONFIDENCE_STEPS}
    content = {"grid": grid_json(solves[0].header), "cycles": solves[0].cycles, **scales, "puzzles": puzzles}
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    raw = len(text).to_bytes(4, "little") + text + b"".join(blobs)
    return base64.b64encode(zlib.compress(raw, 9)).decode("ascii")


def _puzzle_json(
    solve: Solve, shown: NDArray[np.bool_], extent: tuple[int, int], tasks: Tasks | None
) -> dict[str, Any]:
    wants = np.flatnonzero(solve.wants_to_halt)
    # Whether to halt is asked at the end of an ACT step only.
    wants_frame = int(wants[0]) + solve.cycles - 1 if len(wants) else None
    return {
        "row": solve.row,
        "name": solve.name if tasks is None else f"{tasks.name(solve.identifier)} · {solve.name}",
        "rows": extent[0],
        "columns": extent[1],
        "moments": solve.moments,
        "halt": np.round(solve.halt_probability, 4).tolist(),
        "wants_frame": wants_frame,
        "asked": int(solve.asked.sum()),
        "right": solve.cells_right.tolist(),
        "wrong": solve.wrong.sum(1).tolist(),
        "outside": solve.wrong[:, ~shown].sum(1).tolist(),
        "examples": [] if tasks is None else tasks.demonstrations(solve.identifier),
    }


def _shown(solve: Solve) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """The cells that are drawn, bool [seq_len], and their rows and columns: all, but of ARC's canvas what is used."""
    rows, columns = solve.header.grid
    if solve.header.kind == "arc":
        rows, columns = arc_extent(columns, solve.inputs, solve.labels, *solve.preds)
    shown = np.zeros(solve.header.grid, bool)
    shown[:rows, :columns] = True
    return shown.ravel(), (rows, columns)


def _differences(frames: NDArray) -> bytes:
    """Frames [F, cells] in 0..255 as differences from the one before, modulo 256: mostly zeros, so they pack well."""
    whole = frames.astype(np.uint8)
    return _bytes(np.concatenate([whole[:1], np.diff(whole, axis=0)]))


def _bytes(cells: NDArray) -> bytes:
    return np.ascontiguousarray(cells).astype(np.uint8).tobytes()
