"""The distributed calls: one process needs no group; two processes under torchrun give the right sums.

The workers run this file as a script, once for all tests, and leave what they got in files. They use the CPU
and Gloo, and then, where there are two GPUs, those and NCCL.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

from datasets.common import InputError
from training import checkpoint, distributed
from training.checkpoint import load_checkpoint, save_checkpoint
from training.distributed import Distributed, FlatGradients

ROOT = Path(__file__).resolve().parents[2]
WORLD_SIZE = 2
SLOTS = 6
ROW_DTYPES = (torch.float32, torch.bfloat16, torch.int32, torch.int64, torch.bool)


class Network(nn.Module):
    """Parameters of two dtypes, buffers of four, one of them not persistent and one sent by itself."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 2)
        self.small = nn.Parameter(torch.randn(3, dtype=torch.bfloat16))
        self.register_buffer("counts", torch.arange(4) + seed)
        self.register_buffer("flags", torch.tensor([seed > 0, True]))
        self.register_buffer("scratch", torch.full((2, 2), float(seed)), persistent=False)
        self.register_buffer("large", torch.full((1 << 22,), float(seed)))

    def forward(self, rank: int) -> Tensor:
        """The loss on a rank's example."""
        rows = self.second(self.first(example(rank).to(self.small.device)).relu())
        return rows.square().sum() + (self.small.float() * (rank + 1)).sum()


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: param.grad for name, param in model.named_parameters() if param.grad is not None}


def example(rank: int) -> Tensor:
    return torch.arange(6.0).reshape(2, 3) + 10 * rank


def rows(rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of one and of two dimensions, with gaps between the rows."""
    numbers = (torch.arange(8) + 100 * rank).to(dtype)
    return numbers[::2], numbers.reshape(4, 2)[::2]


def carry() -> dict[str, Tensor]:
    return {"z": torch.arange(SLOTS * 4.0).reshape(SLOTS, 2, 2), "steps": torch.arange(SLOTS)}


# ---- one process


def test_one_process_needs_no_group() -> None:
    dist = Distributed()
    assert dist.is_main
    assert (dist.any_true(True), dist.any_true(False)) == (True, False)
    value = torch.ones(3)
    dist.all_reduce_flat([value])
    assert torch.equal(value, torch.ones(3))
    assert dist.all_gather_rows(value) is value
    assert dist.gather_objects("a") == dist.all_gather_objects("a") == ["a"]
    assert dist.broadcast_object("a") == "a"
    dist.barrier()
    dist.broadcast_module(Network(1))
    assert not torch_dist.is_initialized()


def test_init_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with distributed.init("cpu") as dist:
        assert dist == Distributed(0, 1, 0, torch.device("cpu"))
        assert not torch_dist.is_initialized()


def test_init_refuses_what_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(InputError, match="device=gpu: choose auto, cpu, cuda or mps"):
        distributed.init("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="device=cuda: PyTorch finds no CUDA device"):
        distributed.init("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="LOCAL_RANK=2, but there are 2 GPUs"):
        distributed.init("cuda")
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(InputError, match="RANK='first'"):
        distributed.init("cpu")


def test_flat_gradients_are_the_gradients() -> None:
    model, reference = Network(0), Network(0)
    model.second.bias.requires_grad_(False)
    flat = FlatGradients([*model.parameters(), model.first.bias])
    assert {buffer.dtype for buffer in flat.tensors} == {torch.float32, torch.bfloat16}
    for _ in range(2):
        flat.zero()
        model(0).backward()
    flat.all_reduce(Distributed())
    reference(0).backward()
    wanted = gradients_of(reference)
    del wanted["second.bias"]
    assert gradients_of(model).keys() == wanted.keys()
    for name, gradient in gradients_of(model).items():
        assert torch.equal(gradient, wanted[name])
    squares = sum(float(gradient.float().square().sum()) for gradient in wanted.values())
    assert sum(float(buffer.float().square().sum()) for buffer in flat.tensors) == pytest.approx(squares)


def test_flat_gradients_notice_and_repair_lost_views() -> None:
    model = Network(0)
    flat = FlatGradients(model.parameters())
    model.zero_grad(set_to_none=True)
    with pytest.raises(RuntimeError, match="left the flat buffer"):
        flat.all_reduce(Distributed())
    model(0).backward()
    with pytest.raises(RuntimeError, match="left the flat buffer"):
        flat.all_reduce(Distributed())
    flat.zero()
    model(0).backward()
    flat.all_reduce(Distributed())
    assert all(float(buffer.abs().sum()) > 0 for buffer in flat.tensors)
    flat.zero()
    assert len(gradients_of(model)) == 5
    assert not any(bool(gradient.any()) for gradient in gradients_of(model).values())


# ---- two processes


needs_gpus = pytest.mark.skipif(torch.cuda.device_count() < WORLD_SIZE, reason="needs two GPUs")


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=needs_gpus)])
def workers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank got, on the CPU and in rank order."""
    folder = tmp_path_factory.mktemp("workers")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(WORLD_SIZE), __file__, str(folder), request.param]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    results = [torch.load(folder / f"{rank}.pt", weights_only=True, map_location="cpu") for rank in range(WORLD_SIZE)]
    return [{**result, "folder": folder, "stderr": ran.stderr} for result in results]


def test_ranks_and_flags(workers: list[dict[str, Any]]) -> None:
    for rank, got in enumerate(workers):
        assert got["place"] == [rank, WORLD_SIZE, rank, rank == 0]
        assert got["flags"] == [False, True, True, True]


def test_objects(workers: list[dict[str, Any]]) -> None:
    everybody = [{"rank": 0, "text": "a"}, {"rank": 1, "text": "bb"}]
    assert workers[0]["gathered"] == everybody
    assert workers[1]["gathered"] is None
    for got in workers:
        assert got["all_gathered"] == everybody
        assert got["broadcast"] == everybody[0]


def test_all_reduce_flat_sums_each_tensor(workers: list[dict[str, Any]]) -> None:
    for got in workers:
        floats, doubles, integers, scalar = got["sums"]
        assert torch.equal(floats, example(0) + example(1))
        assert torch.equal(doubles, (example(0) + example(1)).double().t())
        assert torch.equal(integers, torch.tensor([1, 3]))
        assert torch.equal(scalar, torch.tensor(1.0))


def test_rows_are_gathered_in_rank_order(workers: list[dict[str, Any]]) -> None:
    for got in workers:
        wanted = [torch.cat(both) for dtype in ROW_DTYPES for both in zip(rows(0, dtype), rows(1, dtype), strict=True)]
        assert len(got["rows"]) == len(wanted)
        for gathered, want in zip(got["rows"], wanted, strict=True):
            assert gathered.dtype == want.dtype
            assert torch.equal(gathered, want)


def test_modules_equal_rank_0s(workers: list[dict[str, Any]]) -> None:
    wanted = [*Network(0).parameters(), *Network(0).buffers()]
    for got in workers:
        assert len(got["module"]) == len(wanted)
        for tensor, want in zip(got["module"], wanted, strict=True):
            assert torch.equal(tensor, want)


def test_gradients_are_summed_over_the_ranks(workers: list[dict[str, Any]]) -> None:
    model = Network(0)
    (model(0) + model(1)).backward()
    wanted = gradients_of(model)
    for got in workers:
        assert got["gradients"].keys() == wanted.keys()
        for name, gradient in got["gradients"].items():
            torch.testing.assert_close(gradient, wanted[name])
            assert torch.equal(gradient, workers[0]["gradients"][name])


def test_shards_of_two_processes_load_into_any_number(workers: list[dict[str, Any]]) -> None:
    path = workers[0]["folder"] / "run" / "checkpoints" / "step_1"
    assert sorted(file.name for file in path.iterdir()) == [
        "carry.0-3.safetensors",
        "carry.3-6.safetensors",
        "manifest.json",
        "model.safetensors",
    ]
    assert load_checkpoint(path, groups=[]).meta == {"from": 0}
    for slots in (None, range(6), range(2, 5), range(4), range(4, 6), range(1, 2)):
        shard = load_checkpoint(path, groups=["carry"], slots=slots).shards["carry"]
        for name, tensor in carry().items():
            cut = tensor if slots is None else tensor[slots.start : slots.stop]
            assert torch.equal(shard[name], cut)
    for rank, got in enumerate(workers):
        start, stop = ((0, 4), (4, 6))[rank]
        assert torch.equal(got["resharded"], carry()["z"][start:stop])


def test_a_disk_error_on_one_rank_is_every_ranks(workers: list[dict[str, Any]]) -> None:
    for got in workers:
        assert got["full disk"] == "None"
        assert got["broken disk"] == f"OSError {errno.EIO}"
    assert workers[0]["stderr"].count("warning: checkpoint of step 2 was not saved") == 1
    names = sorted(file.name for file in (workers[0]["folder"] / "run" / "checkpoints").iterdir())
    assert names == ["latest", "step_1"]


# ---- what a worker does


def save_as_worker(dist: Distributed, folder: Path, step: int) -> Path | None:
    slots = range(3 * dist.rank, 3 * dist.rank + 3)
    mine = {name: tensor[slots.start : slots.stop].to(dist.device) for name, tensor in carry().items()}
    return save_checkpoint(
        folder / "run",
        step,
        replicated={"model": {"weight": torch.ones(2)}},
        sharded={"carry": (slots, mine)},
        meta={"from": dist.rank},
        dist=dist,
    )


def save_with_a_bad_disk(dist: Distributed, folder: Path, step: int, code: int) -> str:
    """Rank 1's disk fails."""
    original = checkpoint.sync

    def fail(path: Path) -> None:
        raise OSError(code, os.strerror(code), str(path))

    checkpoint.sync = fail if dist.rank == 1 else original
    try:
        return str(save_as_worker(dist, folder, step))
    except OSError as error:
        return f"OSError {error.errno}"
    finally:
        checkpoint.sync = original


def work(dist: Distributed, folder: Path) -> dict[str, Any]:
    mine = {"rank": dist.rank, "text": "ab"[dist.rank] * (dist.rank + 1)}
    sums = [example(dist.rank), example(dist.rank).double().t(), torch.tensor([0, 1]) + dist.rank]
    sums.append(torch.tensor(float(dist.rank)))
    sums = [tensor.to(dist.device) for tensor in sums]
    dist.all_reduce_flat(sums)
    model = Network(dist.rank).to(dist.device)
    dist.broadcast_module(model)
    module = [tensor.detach().clone() for tensor in (*model.parameters(), *model.buffers())]
    flat = FlatGradients(model.parameters())
    model(dist.rank).backward()
    flat.all_reduce(dist)
    path = save_as_worker(dist, folder, step=1)
    assert path is not None
    slots = (range(4), range(4, 6))[dist.rank]
    dist.barrier()
    return {
        "place": [dist.rank, dist.world_size, dist.local_rank, dist.is_main],
        "flags": [dist.any_true(flag) for flag in (False, dist.rank == 0, dist.rank == 1, True)],
        "gathered": dist.gather_objects(mine),
        "all_gathered": dist.all_gather_objects(mine),
        "broadcast": dist.broadcast_object(mine),
        "sums": sums,
        "rows": [dist.all_gather_rows(part.to(dist.device)) for dtype in ROW_DTYPES for part in rows(dist.rank, dtype)],
        "module": module,
        "gradients": gradients_of(model),
        "resharded": load_checkpoint(path, groups=["carry"], device=dist.device, slots=slots).shards["carry"]["z"],
        "full disk": save_with_a_bad_disk(dist, folder, 2, errno.ENOSPC),
        "broken disk": save_with_a_bad_disk(dist, folder, 3, errno.EIO),
    }


if __name__ == "__main__":
    target = Path(sys.argv[1])
    with distributed.init(sys.argv[2]) as group:
        torch.save(work(group, target), target / f"{group.rank}.pt")
