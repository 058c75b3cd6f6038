"""Checkpoints: exact round trips, crashes at every stage of writing, damage, other numbers of processes."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from datasets.common import InputError
from training import checkpoint, files, manifest
from training.checkpoint import (
    find_latest,
    load_checkpoint,
    resolve_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from training.lock import RunLock

ROOT = Path(__file__).resolve().parents[2]


def state(fill: int) -> dict[str, dict[str, Tensor]]:
    return {
        "model": {"weight": torch.full((3, 5), float(fill)), "bias": torch.arange(7) + fill},
        "optim": {"exp_avg": torch.full((15,), fill / 3)},
    }


def save(run_dir: Path, step: int, keep_last: int | None = None, needed: bool = False) -> Path | None:
    return save_checkpoint(
        run_dir, step, replicated=state(step), sharded={}, meta={"step": step}, keep_last=keep_last, needed=needed
    )


def assert_holds(path: Path | None, step: int) -> None:
    assert path is not None
    loaded = load_checkpoint(path, groups=["model", "optim"])
    assert (loaded.step, loaded.meta) == (step, {"step": step})
    for group, tensors in state(step).items():
        assert loaded.groups[group].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(loaded.groups[group][name], tensor)


def step_names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_every_dtype_and_shape_comes_back_bit_for_bit(tmp_path: Path) -> None:
    dtypes = (
        torch.float32,
        torch.float64,
        torch.bfloat16,
        torch.float16,
        torch.int64,
        torch.int32,
        torch.uint8,
    )
    tensors = {f"{dtype}": (torch.randn(4, 3) * 50).to(dtype) for dtype in dtypes}
    tensors |= {
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
    }
    path = save_checkpoint(tmp_path, 1, replicated={"model": tensors, "none": {}}, sharded={}, meta={})
    assert path is not None
    loaded = load_checkpoint(path, groups=["model", "none"]).groups
    assert loaded["none"] == {}
    for name, tensor in tensors.items():
        back = loaded["model"][name]
        assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(back.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_views_transposes_and_shared_storage_are_stored_by_value(tmp_path: Path) -> None:
    flat = torch.arange(12.0)
    tensors = {
        "all": flat,
        "again": flat,
        "head": flat[:4],
        "tail": flat[8:],
        "transposed": flat.view(3, 4).t(),
        "expanded": torch.tensor([1.0]).expand(5),
        "needs_grad": torch.nn.Parameter(flat[2:5]),
    }
    path = save_checkpoint(tmp_path, 1, replicated={"model": tensors}, sharded={}, meta={})
    assert path is not None
    loaded = load_checkpoint(path, groups=["model"]).groups["model"]
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)


def test_loaded_tensors_own_their_memory(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    assert path is not None
    weight = load_checkpoint(path, groups=["model"]).groups["model"]["weight"]
    with (path / "model.safetensors").open("r+b") as file:  # in place, as a mapping would see it
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        file.write(b"\0" * size)
    assert torch.equal(weight, state(1)["model"]["weight"])


def test_manifest_records_what_is_needed_to_continue(tmp_path: Path) -> None:
    meta = {"config": {"lr": 1e-4, "names": ["a", "b"]}, "dataset_hash": "abc", "cursor": 17, "best": None}
    path = save_checkpoint(tmp_path, 12, replicated=state(1), sharded={}, meta=meta)
    assert path == tmp_path / "checkpoints" / "step_12"
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["step"] == 12
    assert manifest["kind"] == "training"
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["versions"]["numpy"] == np.__version__
    assert manifest["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert manifest["meta"] == meta == load_checkpoint(path, groups=[]).meta
    model = (path / "model.safetensors").read_bytes()
    assert manifest["files"]["model.safetensors"] == {
        "sha256": hashlib.sha256(model).hexdigest(),
        "bytes": len(model),
        "group": "model",
        "slots": None,
    }
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((path / "model.safetensors").stat().st_mode) == 0o666 & ~umask


def test_latest_and_keep_last(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        save(tmp_path, step, keep_last=2)
    assert step_names(tmp_path) == ["latest", "step_15", "step_20"]
    assert os.readlink(tmp_path / "checkpoints" / "latest") == "step_20"
    assert_holds(find_latest(tmp_path), 20)
    assert_holds(tmp_path / "checkpoints" / "latest", 20)
    save(tmp_path, 25)
    assert step_names(tmp_path) == ["latest", "step_15", "step_20", "step_25"]


def test_continuing_from_an_earlier_step_makes_it_the_latest(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step)
    save(tmp_path, 15, keep_last=2)
    assert_holds(find_latest(tmp_path), 15)
    assert step_names(tmp_path) == ["latest", "step_10", "step_15"]


def test_a_step_can_be_saved_again(tmp_path: Path) -> None:
    save(tmp_path, 5)
    path = save_checkpoint(tmp_path, 5, replicated=state(9), sharded={}, meta={"step": 9})
    assert step_names(tmp_path) == ["latest", "step_5"]
    assert path is not None
    assert load_checkpoint(path, groups=["model"]).meta == {"step": 9}


class CrashError(RuntimeError):
    """Not an OSError: nothing may tidy up after it, as after a kill."""


STAGES = [
    ("save_file", checkpoint, "save_file"),
    ("sync", checkpoint, "sync"),
    ("write_manifest", checkpoint, "write_manifest"),
    ("fsync", files.os, "fsync"),
    ("rename", checkpoint.os, "replace"),
]


@pytest.mark.parametrize("again", [False, True], ids=["new step", "same step"])
@pytest.mark.parametrize(("module", "name"), [stage[1:] for stage in STAGES], ids=[stage[0] for stage in STAGES])
def test_a_crash_at_any_stage_leaves_a_valid_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, name: str, again: bool
) -> None:
    """Crash at the first, second, ... call of each system function until a save gets through."""
    save(tmp_path, 1)
    step = 1 if again else 2
    original = getattr(module, name)
    for survived in range(20):
        remaining = survived

        def failing(*args: object, **kwargs: object) -> object:
            nonlocal remaining
            if remaining == 0:
                raise CrashError
            remaining -= 1
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, failing)
            try:
                save(tmp_path, step)
                break
            except CrashError:
                pass
        assert (tmp_path / "checkpoints" / "latest").is_symlink()
        found = find_latest(tmp_path)
        assert found is not None
        assert_holds(found, load_checkpoint(found, groups=[]).step)
    assert 1 <= survived < 20, "the stage was never reached or never got through"
    assert_holds(find_latest(tmp_path), step)
    save(tmp_path, 3)
    assert not [name for name in step_names(tmp_path) if name.endswith((".tmp", ".replaced"))]


def test_the_order_of_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a rename makes visible is on the disk before it, and `latest` is only ever replaced."""
    save(tmp_path, 1)
    calls: list[str] = []

    def spy(module: object, name: str, describe: Callable[..., str]) -> None:
        original = getattr(module, name)

        def spied(*args: object, **kwargs: object) -> object:
            calls.append(describe(*args))
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, spied)

    def name_of(path: object) -> str:
        return str(Path(str(path)).relative_to(tmp_path / "checkpoints"))

    spy(checkpoint, "save_file", lambda tensors, path: f"write {name_of(path)}")
    spy(checkpoint, "sync", lambda path: f"sync {name_of(path)}")
    spy(manifest, "sync", lambda path: f"sync {name_of(path)}")
    spy(checkpoint.os, "replace", lambda old, new: f"rename {name_of(old)} to {name_of(new)}")
    save(tmp_path, 2)
    assert calls == [
        "write step_2.tmp/model.safetensors",
        "sync step_2.tmp/model.safetensors",
        "write step_2.tmp/optim.safetensors",
        "sync step_2.tmp/optim.safetensors",
        "sync step_2.tmp/manifest.json",
        "sync step_2.tmp",
        "rename step_2.tmp to step_2",
        "sync .",
        "rename latest.tmp to latest",
        "sync .",
    ]


def test_kills_while_saving_leave_a_valid_latest(tmp_path: Path) -> None:
    """A child saves as fast as it can and is killed at random moments, 25 times."""
    save(tmp_path, 1)
    moments = random.Random(0)
    context = multiprocessing.get_context("fork")
    last_step = 1
    for _ in range(25):
        child = context.Process(target=_save_forever, args=(tmp_path, last_step))
        child.start()
        time.sleep(moments.uniform(0.002, 0.06))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        found = find_latest(tmp_path)
        assert found is not None
        step = load_checkpoint(found, groups=[]).step
        assert step >= last_step
        assert_holds(found, step)
        last_step = step
    assert last_step > 10, "the child hardly got to save anything"


def _save_forever(run_dir: Path, step: int) -> None:
    while True:
        step += 1
        save(run_dir, step, keep_last=2)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("name", ["sync", "write_manifest"])
def test_a_refusing_disk_costs_a_warning_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int, name: str
) -> None:
    save(tmp_path, 1)

    def refuse(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, name, refuse)
        assert save(tmp_path, 2) is None
    warning = capsys.readouterr().err
    assert warning.startswith("warning: checkpoint of step 2 was not saved: ")
    assert os.strerror(code) in warning
    assert warning.count("\n") == 1
    assert step_names(tmp_path) == ["latest", "step_1"]
    assert_holds(find_latest(tmp_path), 1)


def test_a_refusing_disk_is_an_error_where_the_checkpoint_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def refuse(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_manifest", refuse)
        with pytest.raises(InputError, match=r"step 2 could not be saved in .*: make room and run again"):
            save(tmp_path, 2, needed=True)
    assert_holds(find_latest(tmp_path), 1)


def test_other_disk_errors_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(checkpoint, "sync", fail)
    with pytest.raises(OSError, match="Input/output"):
        save(tmp_path, 1)
    assert step_names(tmp_path) == []


def test_a_disk_that_is_really_full_or_read_only(tmp_path: Path) -> None:
    """A tiny file system of our own, filled up and then made read-only: the library's own errors."""
    script = tmp_path / "full.py"
    script.write_text(
        "import subprocess, sys, torch\n"
        "from training.checkpoint import find_latest, load_checkpoint, save_checkpoint\n"
        "def save(step, size):\n"
        "    tensors = {'model': {'w': torch.full((size,), float(step))}}\n"
        "    return save_checkpoint(sys.argv[1], step, replicated=tensors, sharded={}, meta={})\n"
        "assert save(1, 1000) is not None\n"
        "assert save(2, 1_000_000) is None\n"
        "subprocess.run(['mount', '-o', 'remount,ro', sys.argv[1]], check=True)\n"
        "assert save(3, 10) is None\n"
        "found = load_checkpoint(find_latest(sys.argv[1]), groups=['model'])\n"
        "assert found.step == 1 and bool((found.groups['model']['w'] == 1.0).all())\n"
        "print('survived')\n"
    )
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=1m tmpfs {disk}"
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode
    ):
        pytest.skip("this machine lets us mount nothing")
    ran = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{mount} && exec {sys.executable} {script} {disk}"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert ran.stdout == "survived\n", ran.stderr
    assert "No space left on device" in ran.stderr
    assert "Read-only file system" in ran.stderr


def damaged_copies(path: Path, scratch: Path, cases: int) -> list[tuple[str, Path]]:
    """Copies of a checkpoint with one random fault each: (name of the faulty file, copy)."""
    chance = random.Random(1)
    copies = []
    for case in range(cases):
        copy = scratch / f"case_{case}"
        shutil.copytree(path, copy)
        victim = chance.choice(sorted(copy.iterdir()))
        content = bytearray(victim.read_bytes())
        fault = ("flip", "truncate", "delete", "garbage")[case % 4]
        if fault == "delete":
            victim.unlink()
        elif fault == "truncate":
            victim.write_bytes(content[: chance.randrange(len(content))])
        elif fault == "garbage":
            victim.write_bytes(chance.randbytes(len(content)))
        else:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            victim.write_bytes(content)
        copies.append((victim.name, copy))
    return copies


def test_all_of_100_faults_are_found_before_a_tensor_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, 1)
    assert path is not None
    opened: list[Path] = []
    monkeypatch.setattr(checkpoint, "safe_open", lambda file, **_: opened.append(file))
    for victim, copy in damaged_copies(path, tmp_path, cases=100):
        with pytest.raises(InputError) as caught:
            verify_checkpoint(copy)
        assert str(copy / victim) in str(caught.value)
        assert "\n" not in str(caught.value)
        group = victim.removesuffix(".safetensors").replace("manifest.json", "model")
        with pytest.raises(InputError, match=r"step_1|case_"):
            load_checkpoint(copy, groups=[group])
    assert opened == []


def test_damage_falls_back_to_the_previous_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    root = tmp_path / "checkpoints"
    (root / "step_3" / "optim.safetensors").unlink()
    assert find_latest(tmp_path) == root / "step_2"
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1
    assert "step_3" in warning
    assert "optim.safetensors is missing" in warning
    for step in (1, 2):
        (root / f"step_{step}" / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match=r"no checkpoint in .* is intact"):
        find_latest(tmp_path)


def test_find_and_resolve(tmp_path: Path) -> None:
    assert find_latest(tmp_path) is None
    assert find_latest(tmp_path / "absent") is None
    with pytest.raises(InputError, match="no checkpoint and no run directory"):
        resolve_checkpoint(tmp_path)
    path = save(tmp_path, 4)
    assert path is not None
    for given in (tmp_path, path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "latest"):
        assert resolve_checkpoint(given) == path
    with pytest.raises(InputError, match="no group 'ema', only model, optim"):
        load_checkpoint(path, groups=["ema"])


@pytest.mark.parametrize(
    "name",
    ["../../secret.safetensors", "/etc/secret.safetensors", "..safetensors", "a/b.safetensors", "model"],
)
def test_a_manifest_cannot_point_outside_its_directory(tmp_path: Path, name: str) -> None:
    """Its seal is right: the file names themselves are refused."""
    path = save(tmp_path, 1)
    assert path is not None
    content = json.loads((path / "manifest.json").read_text())
    del content["sha256"]
    content["files"] = {name: content["files"]["model.safetensors"]}
    digest = hashlib.sha256(json.dumps(content, indent=1).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps({"sha256": digest, **content}, indent=1) + "\n")
    with pytest.raises(InputError, match=r"manifest\.json: key files"):
        load_checkpoint(path, groups=["model"])


def test_a_link_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    assert path is not None
    shutil.move(path / "model.safetensors", tmp_path / "elsewhere")
    (path / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"model\.safetensors is missing"):
        load_checkpoint(path, groups=["model"])


def test_slots_are_cut_for_any_number_of_processes(tmp_path: Path) -> None:
    carry = {
        "z": torch.randn(12, 3, 2),
        "steps": torch.arange(12, dtype=torch.int32),
        "halted": torch.rand(12) > 0.5,
    }
    path = save_checkpoint(
        tmp_path, 1, replicated=state(0), sharded={"carry": (range(12), carry)}, meta={}, kind="training"
    )
    assert path is not None
    for world_size in (1, 2, 3, 4, 5):
        bounds = [12 * rank // world_size for rank in range(world_size + 1)]
        for start, stop in pairwise(bounds):
            loaded = load_checkpoint(path, groups=["carry", "model"], slots=range(start, stop))
            assert loaded.groups.keys() == {"model"}
            for name, tensor in carry.items():
                assert torch.equal(loaded.shards["carry"][name], tensor[start:stop])
    with pytest.raises(InputError, match="holds slots 0 to 12, not 8 to 16; continue with global_batch_size=12"):
        load_checkpoint(path, groups=["carry"], slots=range(8, 16))


def test_wrong_calls_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has shape"):
        save_checkpoint(tmp_path, 1, replicated={}, sharded={"carry": (range(3), {"z": torch.zeros(4)})}, meta={})
    with pytest.raises(ValueError, match="group name"):
        save_checkpoint(tmp_path, 1, replicated={"../x": {}}, sharded={}, meta={})
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_checkpoint(tmp_path, 1, replicated={}, sharded={}, meta={"path": tmp_path})
    assert not (tmp_path / "checkpoints").exists()


def test_the_second_job_on_a_run_directory_is_refused(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "a"
    with RunLock(run_dir):
        for _ in range(10):
            with pytest.raises(InputError, match=rf"in use by host \S+ pid {os.getpid()};"), RunLock(run_dir):
                pass
        with RunLock(tmp_path / "runs" / "b"):
            pass
    with RunLock(run_dir):
        pass


def test_the_lock_of_a_killed_job_is_gone(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    locked = context.Event()
    child = context.Process(target=_hold_lock, args=(tmp_path, locked))
    child.start()
    assert locked.wait(10)
    with pytest.raises(InputError, match=f"pid {child.pid};"), RunLock(tmp_path):
        pass
    child.kill()
    child.join()
    with RunLock(tmp_path):
        pass


def _hold_lock(run_dir: Path, locked: Event) -> None:
    with RunLock(run_dir):
        locked.set()
        time.sleep(60)
