"""The distributed calls: one process needs no group; two Gloo processes under torchrun give the sums one expects.

The workers run this file as a script, once for all tests, and leave what they got in files.
"""

from __future__ import annotations

import errno
import json
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


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    model.register_buffer("counts", torch.arange(4) + seed)
    model.register_buffer("flags", torch.tensor([seed > 0, True]))
    model.register_buffer("scratch", torch.full((2, 2), float(seed)), persistent=False)
    model.register_parameter("half", nn.Parameter(torch.randn(3, dtype=torch.bfloat16)))
    model.register_buffer("large", torch.full((1 << 22,), float(seed)))
    return model


def example(rank: int) -> Tensor:
    return torch.arange(6.0).reshape(2, 3) + 10 * rank


def rows(rank: int, dtype: torch.dtype) -> Tensor:
    return (torch.arange(8).reshape(4, 2)[::2] + 100 * rank).to(dtype)


def carry() -> dict[str, Tensor]:
    return {"z": torch.arange(SLOTS * 4.0).reshape(SLOTS, 2, 2), "steps": torch.arange(SLOTS)}


def loss_of(model: nn.Module, rank: int) -> Tensor:
    return (model(example(rank)) ** 2).sum() + (model.half.float() * (rank + 1)).sum()


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
    dist.broadcast_module(network(1))
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
    model, reference = network(0), network(0)
    model.register_parameter("tied", model[0].weight)
    model[2].bias.requires_grad_(False)
    gradients = FlatGradients([*model.parameters(), model[0].bias])
    assert [flat.dtype for flat in gradients.tensors] == [torch.float32, torch.bfloat16]
    for _ in range(2):
        gradients.zero()
        loss_of(model, 0).backward()
    loss_of(reference, 0).backward()
    gradients.all_reduce(Distributed())
    wanted = {name: param.grad for name, param in reference.named_parameters()}
    for name, param in model.named_parameters():
        if name == "2.bias":
            assert param.grad is None
        elif name != "tied":
            assert torch.equal(param.grad, wanted[name])
    squares = sum(float(grad.float().square().sum()) for name, grad in wanted.items() if name != "2.bias")
    assert sum(float(flat.float().square().sum()) for flat in gradients.tensors) == pytest.approx(squares)


def test_flat_gradients_notice_and_repair_lost_views() -> None:
    model = network(0)
    gradients = FlatGradients(model.parameters())
    model.zero_grad(set_to_none=True)
    with pytest.raises(RuntimeError, match="left the flat buffer"):
        gradients.all_reduce(Distributed())
    loss_of(model, 0).backward()
    with pytest.raises(RuntimeError, match="left the flat buffer"):
        gradients.all_reduce(Distributed())
    gradients.zero()
    loss_of(model, 0).backward()
    gradients.all_reduce(Distributed())
    assert float(gradients.tensors[0].abs().sum()) > 0
    gradients.zero()
    assert all(float(param.grad.abs().sum()) == 0 for param in model.parameters())


# ---- two processes


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank got, in rank order."""
    folder = tmp_path_factory.mktemp("workers")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(WORLD_SIZE), __file__, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    results = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD_SIZE)]
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
        for dtype, gathered in zip(ROW_DTYPES, got["rows"], strict=True):
            assert torch.equal(gathered, torch.cat([rows(0, dtype), rows(1, dtype)]))


def test_modules_equal_rank_0s(workers: list[dict[str, Any]]) -> None:
    wanted = [*network(0).parameters(), *network(0).buffers()]
    for got in workers:
        assert len(got["module"]) == len(wanted)
        for tensor, want in zip(got["module"], wanted, strict=True):
            assert torch.equal(tensor, want)


def test_gradients_are_summed_over_the_ranks(workers: list[dict[str, Any]]) -> None:
    model = network(0)
    (loss_of(model, 0) + loss_of(model, 1)).backward()
    for got in workers:
        for gradient, param in zip(got["gradients"], model.parameters(), strict=True):
            torch.testing.assert_close(gradient, param.grad)
    for first, second in zip(workers[0]["gradients"], workers[1]["gradients"], strict=True):
        assert torch.equal(first, second)


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
    mine = {name: tensor[slots.start : slots.stop] for name, tensor in carry().items()}
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
    dist.all_reduce_flat(sums)
    model = network(dist.rank)
    dist.broadcast_module(model)
    module = [tensor.detach().clone() for tensor in (*model.parameters(), *model.buffers())]
    gradients = FlatGradients(model.parameters())
    loss_of(model, dist.rank).backward()
    gradients.all_reduce(dist)
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
        "rows": [dist.all_gather_rows(rows(dist.rank, dtype)) for dtype in ROW_DTYPES],
        "module": module,
        "gradients": [param.grad for param in model.parameters()],
        "resharded": load_checkpoint(path, groups=["carry"], slots=slots).shards["carry"]["z"],
        "full disk": save_with_a_bad_disk(dist, folder, 2, errno.ENOSPC),
        "broken disk": save_with_a_bad_disk(dist, folder, 3, errno.EIO),
    }


if __name__ == "__main__":
    target = Path(sys.argv[1])
    with distributed.init("cpu") as group:
        torch.save(work(group, target), target / f"{group.rank}.pt")
