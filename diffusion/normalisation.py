"""Per-channel statistics of latents, one set per type of update, and the sphere that the latents lie on.

A latent leaves the recursion through an RMS norm without a gain, so every token has root mean square 1, but its
channels differ in mean and in scale. Diffusion assumes mean 0 and variance 1 in every direction, so latents z are
normalised per type and channel, ``u = (z - mean) / std``; a prediction is brought back to the sphere by
``project(u) = normalize(rms_norm(denormalize(u)))``.

    statistics = LatentStatistics(types=2, channels=512)
    statistics.add(z, types)                        # as often as there are latents
    normalizer = LatentNormalizer(*statistics.mean_std(), eps=1e-5)
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

# Latents in bf16 are rounded by up to 4e-3: a channel that varies less than this carries rounding, not information,
# and dividing by its standard deviation would make the rounding as loud as every other channel.
STD_FLOOR = 1e-2


class LatentNormalizer(nn.Module):
    """Affine map per type and channel; `mean` and `std` are [T, D], saved with the module as fp32 buffers.

    `eps` is that of the recursion's RMS norm. Latents are [..., P, D] and `types` integers broadcastable to the
    dimensions before P: [B] for [B, P, D]; [S] or [B, S] for [B, S, P, D]. Results are fp32.

    Raises ValueError if the shapes differ or a number is not finite.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("mean", torch.zeros(mean.shape, dtype=torch.float32))
        self.register_buffer("std", torch.ones(mean.shape, dtype=torch.float32))
        self.set_statistics(mean, std)

    @classmethod
    def identity(cls, types: int, channels: int, eps: float = 1e-5) -> LatentNormalizer:
        """Mean 0 and standard deviation 1: leaves latents as they are, until `set_statistics`."""
        return cls(torch.zeros(types, channels), torch.ones(types, channels), eps)

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Take over mean and std [T, D]; standard deviations under `STD_FLOOR` are raised to it."""
        for name, value in (("mean", mean), ("std", std)):
            if value.ndim != 2 or value.shape != self.mean.shape:
                raise ValueError(
                    f"{name} has shape {list(value.shape)}; expected [types, channels] {list(self.mean.shape)}"
                )
            if not bool(value.isfinite().all()):
                raise ValueError(f"{name} of the latents has values that are not finite: the latents had, too")
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=STD_FLOOR))

    def normalize(self, z: Tensor, types: Tensor) -> Tensor:
        return (z.float() - self.mean[types].unsqueeze(-2)) / self.std[types].unsqueeze(-2)

    def denormalize(self, u: Tensor, types: Tensor) -> Tensor:
        return u.float() * self.std[types].unsqueeze(-2) + self.mean[types].unsqueeze(-2)

    def project(self, u: Tensor, types: Tensor) -> Tensor:
        """The nearest direction on the sphere of token RMS 1, in normalised coordinates."""
        z = self.denormalize(u, types)
        z = z * torch.rsqrt(z.square().mean(-1, keepdim=True) + self.eps)
        return self.normalize(z, types)

    def digest(self) -> str:
        """SHA-256 of the statistics, hexadecimal: the same on every device."""
        found = hashlib.sha256(repr((tuple(self.mean.shape), self.eps)).encode())
        for buffer in (self.mean, self.std):
            found.update(buffer.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        return found.hexdigest()


class LatentStatistics:
    """Running mean and standard deviation per type and channel, from fp64 sums that processes can add up.

    The sums are [T, 1 + 2 D]: tokens counted, sum and sum of squares per channel. They need no host synchronisation
    and do not depend on the order of a device's atomics: the same latents give the same bits.
    """

    def __init__(self, types: int, channels: int, device: torch.device | str = "cpu"):
        self.types = types
        self.channels = channels
        self._sums = torch.zeros(types, 1 + 2 * channels, dtype=torch.float64, device=device)

    @classmethod
    def from_sums(cls, sums: Tensor) -> LatentStatistics:
        """From the `sums()` of several, added up."""
        found = cls(sums.shape[0], (sums.shape[1] - 1) // 2, sums.device)
        found._sums = sums.to(torch.float64).clone()
        return found

    @torch.no_grad()
    def add(self, z: Tensor, types: Tensor) -> None:
        """Count latents z [n, P, D] whose types int64 [n] lie in 0..T-1."""
        latents = z.double()
        tokens = torch.full((len(z), 1), z.shape[1], dtype=torch.float64, device=z.device)
        per_row = torch.cat((tokens, latents.sum(1), latents.square().sum(1)), dim=1)
        of_type = torch.arange(self.types, device=z.device)[:, None] == types[None, :]
        self._sums += of_type.double() @ per_row

    def sums(self) -> Tensor:
        """fp64 [T, 1 + 2 D], a copy: what an all-reduce adds up."""
        return self._sums.clone()

    def tokens(self) -> Tensor:
        """Tokens counted per type, int64 [T]."""
        return self._sums[:, 0].long()

    def mean_std(self) -> tuple[Tensor, Tensor]:
        """Mean and (population) standard deviation, fp32 [T, D]. Raises ValueError if a type was never counted."""
        missing = [index for index, count in enumerate(self.tokens().tolist()) if count == 0]
        if missing:
            raise ValueError(f"no latent of type {missing[0]} was counted: harvest trajectories that hold every type")
        count, total, squares = self._sums.split((1, self.channels, self.channels), dim=1)
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        return mean.float(), variance.sqrt().float()
