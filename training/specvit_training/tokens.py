"""From a normalised batch to tokens.

A spectrum is not an image: each wavelength has its own meaning and its noise is known. *Information tokens* are
whitened residuals times relative information,

    t_p = E_p . [(f_i - m_i) / s0_i * q_i],   q_i = (s0_i / s_i)^2 / R * R / (1 + R),

with m the mean template, s the error, s0 a fixed reference error and R the spectrum's mean information relative to
the reference. Pixels without information (s = inf) vanish by themselves. E_p is not shared between patches and
starts from the emulator's whitened basis, so that the sum of all tokens starts as the linear sufficient statistic.

The study's tokenisers, shared between patches, stand beside them: C1D (convolution) and SW (linear map of windows).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specvit_training.shape import PIXELS, ViTConfig

STEM_WIDTH = 8
"""Channels of the stem."""
KERNEL = 9
"""Pixels of its depth-wise convolution."""
LEAST_INFORMATION = 1e-3
"""Floor of the relative information whose logarithm is a channel; that of a bad pixel."""


class Normalised(NamedTuple):
    """A batch as the network sees it; rows are spectra.

    residual : (B, n) flux over amplitude, minus the mean template; 0 at bad pixels.
    information : (B, n) (s0 / s)^2, the pixel's information relative to the reference error; 0 at bad pixels.
    log_snr : (B, 1) log10 of the rms S/N per good pixel.
    scenario : (B,) int64, row of `SCENARIO_NAMES`.
    """

    residual: Tensor
    information: Tensor
    log_snr: Tensor
    scenario: Tensor


class Windows(nn.Module):
    """Cut (B, ..., n) into windows (B, ..., T, patch), which overlap if the stride is less than the patch."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.patch = config.patch
        self.overlap = config.step < config.patch
        first = config.step * torch.arange(config.patches)
        self.register_buffer("pixel", first[:, None] + torch.arange(config.patch), persistent=False)

    pixel: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Windows."""
        return x[..., self.pixel] if self.overlap else x.reshape(*x.shape[:-1], -1, self.patch)


class InformationTokens(nn.Module):
    """Patch embedding of whitened residuals, not shared between patches."""

    def __init__(self, config: ViTConfig, reference_error: Tensor, projection: Tensor) -> None:
        """Start from `projection` (K, n), rows of L^-1 B W0 times `reference_error` (n,)."""
        super().__init__()
        self.windows = Windows(config)
        self.register_buffer("inverse_error", 1.0 / reference_error)
        weight = 0.02 * torch.randn(config.patches, config.patch + 1, config.dim)
        k = min(len(projection), config.dim - config.dim // 8)  # the rest are spare dimensions
        times_seen = torch.bincount(self.windows.pixel.flatten(), minlength=PIXELS)  # 1 without overlap
        start = self.windows(projection[:k] / times_seen).permute(1, 2, 0)
        weight[:, :-1, :k] = math.sqrt(config.patches) * start  # tokens of order one
        self.weight = nn.Parameter(weight)

    inverse_error: Tensor

    def forward(self, x: Normalised) -> Tensor:
        """Tokens (B, T, dim)."""
        level = x.information.mean(1, keepdim=True)
        share = x.information / (1.0 + level)  # (s0/s)^2 / R times the shrinkage R / (1 + R)
        whitened = self.windows((x.residual * self.inverse_error * share).clamp(-1e3, 1e3))
        known = self.windows(share).mean(2, keepdim=True).clamp(max=1e2)
        tokens: Tensor = torch.cat([whitened, known], 2).transpose(0, 1) @ self.weight  # (T, B, dim)
        return tokens.transpose(0, 1)


class Channels(nn.Module):
    """What shared tokenisers see: (B, C, n) of residuals, with the noise if asked, through a stem if asked."""

    def __init__(self, config: ViTConfig, reference_error: Tensor) -> None:
        super().__init__()
        self.noise = config.noise_channels
        self.register_buffer("inverse_error", 1.0 / reference_error, persistent=False)
        self.number = 2 if self.noise else 1
        self.stem = nn.Sequential()
        if config.stem:
            self.stem.append(nn.Conv1d(self.number, STEM_WIDTH, 1))
            self.stem.extend(StemBlock() for _ in range(config.stem))
            self.number = STEM_WIDTH

    inverse_error: Tensor

    def forward(self, x: Normalised) -> Tensor:
        """Channels (B, C, n)."""
        if not self.noise:
            out: Tensor = self.stem(x.residual[:, None])
            return out
        whitened = (x.residual * self.inverse_error * x.information.sqrt()).clamp(-1e2, 1e2)
        out = self.stem(torch.stack([whitened, torch.log10(x.information.clamp(min=LEAST_INFORMATION))], 1))
        return out


class StemBlock(nn.Module):
    """x + pointwise(gelu(depth-wise(x))) on (B, C, n)."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(STEM_WIDTH, STEM_WIDTH, KERNEL, padding=KERNEL // 2, groups=STEM_WIDTH)
        self.pointwise = nn.Conv1d(STEM_WIDTH, STEM_WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, n) -> (B, C, n)."""
        out: Tensor = x + self.pointwise(F.gelu(self.depthwise(x)))
        return out


class ConvTokens(nn.Module):
    """The study's C1D tokeniser: one convolution, a step per token."""

    def __init__(self, config: ViTConfig, reference_error: Tensor) -> None:
        super().__init__()
        self.channels = Channels(config, reference_error)
        self.conv = nn.Conv1d(self.channels.number, config.dim, config.patch, stride=config.step)

    def forward(self, x: Normalised) -> Tensor:
        """Tokens (B, T, dim)."""
        tokens: Tensor = self.conv(self.channels(x))
        return tokens.transpose(1, 2)


class WindowTokens(nn.Module):
    """The study's SW tokeniser: one linear map of sliding windows; weights start at 0.02, biases at 0."""

    def __init__(self, config: ViTConfig, reference_error: Tensor) -> None:
        super().__init__()
        self.channels, self.windows = Channels(config, reference_error), Windows(config)
        self.linear = nn.Linear(self.channels.number * config.patch, config.dim)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Normalised) -> Tensor:
        """Tokens (B, T, dim)."""
        windows = self.windows(self.channels(x)).transpose(1, 2).flatten(2)  # (B, T, C patch)
        tokens: Tensor = self.linear(windows)
        return tokens
