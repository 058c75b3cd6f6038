"""What an ARC evaluation solved, task by task, with pictures of solved and unsolved tasks.

python -m scripts.analyze_trm_arc_results runs/quickstart-arc/final tasks --data-root data/arc-small
python -m scripts.analyze_trm_arc_results submission.json tasks --data-root data/arc1-aug-1000
python -m scripts.analyze_trm_arc_results runs/arc1/seen/trajectories tasks

The results are an evaluation's folder, a submission in Kaggle's form, or captured trajectories. Writes tasks.csv,
summary.json, pictures/TASK.png and tasks.html; for Sudoku and mazes see scripts.generate_report_from_preds.
"""

from __future__ import annotations

import base64
import html
import sys
import urllib.parse
from pathlib import Path
from typing import Any

from datasets.common import InputError, check_folder
from evaluators.common import write_text
from evaluators.render import draw_arc_task
from training.cli import run_cli, script_parser
from training.evaluation import STEPS_FILE
from trajectories.arc_tasks import ArcResults, is_capture, read_results, recounted, summary_json
from trajectories.page import write_page
from trajectories.store import open_capture


def main(argv: list[str]) -> None:
    parser = script_parser("analyze_trm_arc_results", __doc__)
    parser.add_argument("results", type=Path, help="an evaluation's folder, a submission.json, or a capture's folder")
    parser.add_argument("out", type=Path, help="folder for the table and the pictures")
    parser.add_argument("--data-root", type=Path, help="the data set's folder; a capture knows its own")
    parser.add_argument("--count", type=int, default=3, help="draw so many solved and unsolved tasks (default 3 each)")
    arguments = parser.parse_args(argv)
    if arguments.count < 0:
        raise InputError(f"--count {arguments.count} must be at least 0")
    check_folder(arguments.out, str(arguments.out))
    if arguments.out.resolve() == arguments.results.resolve() or (arguments.out / STEPS_FILE).is_file():
        raise InputError(f"{arguments.out} holds the results, whose own files would be replaced: name another folder")
    if is_capture(arguments.results):
        results = recounted(open_capture(arguments.results), arguments.out, arguments.data_root)
    elif arguments.data_root is None:
        raise InputError(f"{arguments.results} does not name its data set: give --data-root")
    else:
        results = read_results(arguments.results, arguments.data_root)
    write_text(arguments.out / "tasks.csv", results.table_csv())
    figures = results.summary()
    write_text(arguments.out / "summary.json", summary_json(figures))
    pictures = _draw(results, arguments.out / "pictures", arguments.count)
    write_page(
        arguments.out / "tasks.html",
        "tasks.html",
        (),
        title=f"ARC: {figures['tasks']} tasks, pass@2 {figures['pass@2']:.1%}",
        subtitle=f"from {arguments.results}",
        table_payload=_table_html(results.table()),
        pictures_payload="".join(_section_html(title, shown) for title, shown in pictures.items()),
    )
    for key, value in figures.items():
        print(f"{key:<16} {value:.6g}")
    print(arguments.out / "tasks.html")


def _draw(results: ArcResults, folder: Path, count: int) -> dict[str, dict[str, Path]]:
    """Pictures by the heading that they go under, and by task."""
    return {
        title: {
            name: draw_arc_task(results.tasks[name], results.attempts[name], _place(folder, name)) for name in names
        }
        for title, names in results.examples(count).items()
    }


def _place(folder: Path, task: str) -> Path:
    """A task may have any name, a path's too."""
    return folder / f"{urllib.parse.quote(task, safe='')}.png"


def _table_html(rows: list[dict[str, Any]]) -> str:
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    lines = ("".join(f"<td>{_cell(value)}</td>" for value in row.values()) for row in rows)
    return f"<table><tr>{heads}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else html.escape(str(value))


def _section_html(title: str, pictures: dict[str, Path]) -> str:
    images = "".join(_figure_html(html.escape(name), path.read_bytes()) for name, path in pictures.items())
    return f"<h2>{title.capitalize()}</h2><div class='tasks'>{images or '<p>none</p>'}</div>"


def _figure_html(name: str, picture: bytes) -> str:
    data = base64.b64encode(picture).decode("ascii")
    return (
        f'<figure><figcaption>{name}</figcaption><img alt="Task {name}: demonstrations, test and attempts" '
        f'src="data:image/png;base64,{data}"></figure>'
    )


if __name__ == "__main__":
    sys.exit(run_cli(main, sys.argv[1:]))
