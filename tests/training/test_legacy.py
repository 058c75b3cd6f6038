"""Original ``.pt`` files: both key styles come in, nothing is executed, exports load like originals."""

from __future__ import annotations

import io
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from datasets.common import InputError
from scripts.export_checkpoint import main as export_main
from training.checkpoint import save_checkpoint
from training.legacy import read_torch_checkpoint, write_torch_checkpoint

ROOT = Path(__file__).resolve().parents[2]
STATE = {
    "model.inner.H_init": torch.arange(4.0),
    "model.inner.puzzle_emb.weights": torch.ones(3, 4),
    "model.inner.lm_head.weight": torch.full((2, 4), 0.5, dtype=torch.bfloat16),
}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "old format"])
def test_original_files_come_in(tmp_path: Path, prefix: str, is_zip: bool) -> None:
    path = tmp_path / "step_100"
    renamed = {prefix + name: tensor for name, tensor in STATE.items()}
    torch.save(renamed, path, _use_new_zipfile_serialization=is_zip)
    assert_same(read_torch_checkpoint(path), STATE)


class Payload:
    """Unpickling it calls a function: the classical attack."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def payloads(mark: Path) -> dict[str, Any]:
    command = f"touch {mark}"
    attacks: dict[str, Any] = {
        "system": Payload(os.system, command),
        "eval": Payload(eval, f"open({str(mark)!r}, 'w')"),
        "exec": Payload(exec, f"open({str(mark)!r}, 'w')"),
        "popen": Payload(subprocess.Popen, ["touch", str(mark)]),
        "mkdir": Payload(os.mkdir, str(mark)),
        "open": Payload(open, str(mark), "w"),
    }
    nested = {f"nested {name}": {"model.inner.H_init": attack} for name, attack in attacks.items()}
    return attacks | nested | {"in a list": [STATE, attacks["system"]]}


@pytest.mark.parametrize("writer", ["torch", "old torch", "pickle"])
def test_no_payload_is_executed(tmp_path: Path, writer: str) -> None:
    mark = tmp_path / "executed"
    for name, content in payloads(mark).items():
        path = tmp_path / f"{name}.pt"
        if writer == "pickle":
            path.write_bytes(pickle.dumps(content))
        else:
            torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
        with pytest.raises(InputError) as caught:
            read_torch_checkpoint(path)
        assert str(caught.value).startswith(f"{path} ")
        assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_the_payloads_are_real(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    pickle.loads(pickle.dumps(payloads(mark)["open"]))  # noqa: S301 (our own, to see that it does something)
    assert mark.exists()


def test_damaged_files_are_an_input_error(tmp_path: Path) -> None:
    chance = random.Random(0)
    path = tmp_path / "damaged.pt"
    failures = 0
    for is_zip in (True, False):
        buffer = io.BytesIO()
        torch.save(STATE, buffer, _use_new_zipfile_serialization=is_zip)
        for case in range(400):
            content = bytearray(buffer.getvalue())
            if case % 5 == 0:
                content = content[: chance.randrange(len(content))]
            for _ in range(chance.choice((1, 3, 30))):
                if content:
                    content[chance.randrange(len(content))] = chance.randrange(256)
            path.write_bytes(content)
            try:
                read_torch_checkpoint(path)
            except InputError as error:
                failures += 1
                assert str(path) in str(error)
    assert failures > 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "holds a list, not a state_dict"),
        ({"model": STATE}, "entry 'model' is a dict, not a named tensor"),
        ({"a": torch.ones(1), "_orig_mod.a": torch.ones(1)}, "a is there twice"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match=message):
        read_torch_checkpoint(tmp_path / "x.pt")


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.pt", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_torch_checkpoint(path)


def test_written_files_are_plain_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.pt"
    big = torch.zeros(1 << 20)
    write_torch_checkpoint(path, STATE | {"view": big[:2]}, compiled_prefix=True)
    plain = torch.load(path, weights_only=True)
    assert_same(plain, {f"_orig_mod.{name}": t for name, t in STATE.items()} | {"_orig_mod.view": big[:2]})
    assert path.stat().st_size < 100_000, "a view must not drag its whole storage along"

    def fail(*args: Any) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(torch, "save", fail)
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="killed"):
        write_torch_checkpoint(path, STATE)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_export_of_raw_and_averaged_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    averages = {"model.inner.lm_head.weight": torch.full((2, 4), 0.25, dtype=torch.bfloat16)}
    run_dir = tmp_path / "run"
    save_checkpoint(run_dir, 7, replicated={"model": STATE, "ema": averages}, sharded={}, meta={})
    out = tmp_path / "out.pt"
    export_main([str(run_dir), str(out)])
    assert_same(read_torch_checkpoint(out), STATE)
    assert capsys.readouterr().out == f"wrote {out}: weights of step 7\n"
    export_main([str(run_dir / "checkpoints" / "step_7"), str(out), "--ema", "--compiled-prefix"])
    assert all(name.startswith("_orig_mod.") for name in torch.load(out, weights_only=True))
    assert_same(read_torch_checkpoint(out), STATE | averages)


def test_export_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 7, replicated={"model": STATE}, sharded={}, meta={})
    with pytest.raises(InputError, match="has no averaged weights; leave out --ema"):
        export_main([str(tmp_path), str(tmp_path / "out.pt"), "--ema"])
    with pytest.raises(InputError, match="is not a directory"):
        export_main([str(tmp_path), str(tmp_path / "absent" / "out.pt")])


def test_export_as_a_command(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "scripts.export_checkpoint", str(tmp_path), str(tmp_path / "out.pt")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert ran.stderr == f"error: {tmp_path} is no checkpoint and no run directory that has one; correct the path\n"
    assert not (tmp_path / "out.pt").exists()
