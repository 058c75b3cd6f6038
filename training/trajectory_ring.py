"""A fixed piece of memory for latents, on the GPU or in pinned memory of the host, written around and read by index.

ring = TrajectoryRing(strata=256, depth=26, entry=(24, 97, 512), dtype=torch.bfloat16, dist=dist, on_host=False)
ring.write(0, latents, puzzle, act_step)                 # an entry of each lane, the oldest ones give way
taken = ring.take(np.zeros(256, np.int64), places)       # latents at `places` of an entry of each stratum
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from datasets.common import InputError
from training.diffusion_schema import HarvestConfig
from training.distributed import Distributed
from training.harvest import Ints

GIB = 2**30
RING_GIB_ON_CUDA, RING_GIB_ELSEWHERE = 16.0, 0.25
# Entries of a lane in the ring; more would hardly make batches less alike, and only delay the first step.
MOST_ENTRIES = 64

INTEGERS = {2: torch.int16, 4: torch.int32}


class TrajectoryRing:
    """`strata` rings of `depth` entries each, every entry K latents [P, D]: ``entry=(K, P, D)``.

    `puzzle` and `act_step`, int64 [strata, depth] in the host's memory, say what the entries are of.
    """

    def __init__(
        self,
        strata: int,
        depth: int,
        entry: tuple[int, int, int],
        dtype: torch.dtype,
        dist: Distributed,
        on_host: bool,
    ):
        self.strata, self.depth = strata, depth
        self._dist, self._on_host = dist, on_host
        device = torch.device("cpu") if on_host else dist.device
        pinned = on_host and dist.device.type == "cuda"
        self._latents = torch.empty((strata, depth, *entry), dtype=dtype, device=device, pin_memory=pinned)
        self.puzzle, self.act_step = (np.zeros((strata, depth), np.int64) for _ in range(2))

    @property
    def nbytes(self) -> int:
        return self._latents.nbytes

    @property
    def place(self) -> str:
        return "host memory" if self._on_host else str(self._dist.device)

    def write(self, production: int, latents: Sequence[Tensor], puzzle: Ints, act_step: Ints) -> None:
        """Put entries in place of the oldest: of the K `latents` [strata * n, P, D], n go to each stratum."""
        lanes = puzzle.size // self.strata
        start = production * lanes % self.depth
        place = slice(start, start + lanes)
        for k, latent in enumerate(latents):
            self._latents[:, place, k] = latent.unflatten(0, (self.strata, lanes))
        self.puzzle[:, place] = puzzle.reshape(self.strata, lanes)
        self.act_step[:, place] = act_step.reshape(self.strata, lanes)

    def take(self, entry: Ints, places: Ints) -> Tensor:
        """Latents [b, strata, P, D] on the device: those at `places` [strata, b] of the entries `entry` [strata]."""
        first = (np.arange(self.strata) * self.depth + entry) * self._latents.shape[2]
        index = torch.from_numpy((first + places.T).reshape(-1))
        latents = self._latents.flatten(0, 2)
        taken = latents.index_select(0, index if self._on_host else self._dist.send(index))
        return self._here(taken).unflatten(0, (-1, self.strata))

    def parts(self, places: Ints) -> Iterator[Tensor]:
        """All latents at `places` [n], an entry at a time: [n, P, D] on the device."""
        index = torch.from_numpy(places).to(self._latents.device)
        for entry in self._latents.flatten(0, 1):
            yield self._here(entry.index_select(0, index))

    def checksum(self) -> str:
        """SHA-256 over all processes' rings, the same for any number of them if the depth is: over each entry's puzzle,
        ACT step and the sum of its numbers, read as integers and weighted by their places."""
        kind = INTEGERS[self._latents.dtype.itemsize]
        weight = 2 * torch.arange(self._latents[0, 0].numel(), device=self._dist.device) + 1
        entries = (self._here(entry).flatten().view(kind) for entry in self._latents.flatten(0, 1))
        sums = torch.stack([(entry * weight).sum() for entry in entries]).view(self.strata, self.depth, 1)
        labels = torch.from_numpy(np.stack((self.puzzle, self.act_step), axis=-1)).to(sums.device)
        rows = self._dist.all_gather_rows(torch.cat((labels, sums), dim=-1))
        return hashlib.sha256(rows.cpu().numpy().tobytes()).hexdigest()

    def _here(self, latents: Tensor) -> Tensor:
        return self._dist.send(latents) if self._on_host else latents


def affordable_entries(options: HarvestConfig, device: torch.device, lanes: int, entry_bytes: int) -> int:
    """How many entries of each of a process's `lanes` the ring may hold; `InputError` where that is none."""
    gib = options.ring_gib or (RING_GIB_ON_CUDA if device.type == "cuda" else RING_GIB_ELSEWHERE)
    one = lanes * entry_bytes
    entries = min(int(gib * GIB // one), MOST_ENTRIES)
    if entries == 0:
        raise InputError(
            f"harvest.ring_gib={gib:g} holds no trajectory for each of the {lanes} lanes of a process, which take "
            f"{one / GIB:.3g} GiB: raise it, or lower global_batch_size or harvest.lanes_per_row"
        )
    if device.type == "cuda" and options.buffer_device != "host":
        free, _ = torch.cuda.mem_get_info(device)
        if entries * one > free:
            raise InputError(
                f"harvest.ring_gib={gib:g}: of the {entries * one / GIB:.3g} GiB that the ring takes "
                f"{free / GIB:.3g} are free on the GPU: lower it, or set harvest.buffer_device=host"
            )
    return entries


def decimal_size(size: float) -> str:
    """Bytes for people, in powers of 1000."""
    units = ("bytes", "kB", "MB", "GB", "TB", "PB", "EB")
    power = min(len(units) - 1, int(math.log10(max(size, 1)) // 3))
    return f"{size / 1000**power:.3g} {units[power]}"
