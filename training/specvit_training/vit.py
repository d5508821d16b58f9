"""The Vision Transformer, in one file.

References: Dosovitskiy et al. 2021 (ViT); Xiong et al. 2020 (pre-norm); the SpecViT study (C1D tokeniser, p16_h256).

A spectrum is not an image: each wavelength has its own meaning and its noise is known. *Information tokens* are
whitened residuals times relative information,

    t_p = E_p . [(f_i - m_i) / s0_i * q_i],   q_i = (s0_i / s_i)^2 / R * R / (1 + R),

with m the mean template, s the error, s0 a fixed reference error and R the spectrum's mean information relative to
the reference. Pixels without information (s = inf) vanish by themselves. E_p is not shared between patches and
starts from the emulator's whitened basis, so that the sum of all tokens starts as the linear sufficient statistic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIXELS = 4096
SCENARIO_NAMES = ("study", "survey")
"""Scenarios that one network serves; an exported graph holds one of them as a constant."""
LOG_SPREAD = (-7.0, 3.0)
"""Range of the log spread, box units."""


@dataclass(frozen=True)
class ViTConfig:
    """Shape of the network.

    Parameters
    ----------
    tokens : str
        "information" (module docstring) or "conv" (the study's C1D: one shared linear map of the residual flux).
    patch, dim, depth, heads, mlp : int
        Pixels of a token, width, layers, attention heads, width of the hidden layer of each MLP.
    outputs : int
        5 labels and 5 log spreads; 1 for the study's log g-only head.
    dropout : float
        On the embedded tokens and in both branches of a layer, while training.
    context : bool
        Whether all tokens are told the spectrum's S/N and the scenario (nuisances) to marginalise over.
    pool : str
        "cls", or "cls+mean" (CLS beside the mean of all other tokens).
    look : bool
        Whether the likelihood around the estimate corrects it (`second_look`).
    """

    tokens: str
    patch: int
    dim: int
    depth: int
    heads: int
    mlp: int
    outputs: int = 10
    dropout: float = 0.0
    context: bool = True
    pool: str = "cls"
    look: bool = False


CONFIGS = {
    "testing": ViTConfig("information", patch=256, dim=32, depth=1, heads=2, mlp=64, pool="cls+mean"),
    "small": ViTConfig("information", patch=64, dim=96, depth=3, heads=4, mlp=384, pool="cls+mean"),
    "p16_h256_L6": ViTConfig("conv", patch=16, dim=256, depth=6, heads=8, mlp=1024, dropout=0.1),
    "p16_h256_L12": ViTConfig("conv", patch=16, dim=256, depth=12, heads=8, mlp=1024, dropout=0.1),
    "p16_h512_L8": ViTConfig("conv", patch=16, dim=512, depth=8, heads=16, mlp=2048, dropout=0.1),
    "p16_h256_L6_logg": ViTConfig(
        "conv", patch=16, dim=256, depth=6, heads=8, mlp=1024, dropout=0.1, outputs=1, context=False
    ),
}


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


class InformationTokens(nn.Module):
    """Patch embedding of whitened residuals, not shared between patches."""

    def __init__(self, config: ViTConfig, reference_error: Tensor, projection: Tensor) -> None:
        """Start from `projection` (K, n), rows of L^-1 B W0 times `reference_error` (n,)."""
        super().__init__()
        self.patches = PIXELS // config.patch
        self.register_buffer("inverse_error", 1.0 / reference_error)
        weight = 0.02 * torch.randn(self.patches, config.patch + 1, config.dim)
        k = min(len(projection), config.dim - config.dim // 8)  # the rest are spare dimensions
        start = projection[:k].reshape(k, self.patches, config.patch).permute(1, 2, 0)
        weight[:, :-1, :k] = math.sqrt(self.patches) * start  # tokens of order one
        self.weight = nn.Parameter(weight)
        self.dim = config.dim

    inverse_error: Tensor

    def forward(self, x: Normalised) -> Tensor:
        """Tokens (B, T, dim)."""
        level = x.information.mean(1, keepdim=True)
        share = x.information / (1.0 + level)  # (s0/s)^2 / R times the shrinkage R / (1 + R)
        whitened = (x.residual * self.inverse_error * share).clamp(-1e3, 1e3)
        whitened = whitened.reshape(-1, self.patches, PIXELS // self.patches)
        known = share.reshape(whitened.shape).mean(2, keepdim=True).clamp(max=1e2)
        tokens: Tensor = torch.cat([whitened, known], 2).transpose(0, 1) @ self.weight  # (T, B, dim)
        return tokens.transpose(0, 1)


class ConvTokens(nn.Module):
    """The study's C1D tokeniser: one linear map for all patches."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.patch = config.patch
        self.linear = nn.Linear(config.patch, config.dim)

    def forward(self, x: Normalised) -> Tensor:
        """Tokens (B, T, dim)."""
        tokens: Tensor = self.linear(x.residual.reshape(-1, PIXELS // self.patch, self.patch))
        return tokens


class Layer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        d = config.dim
        self.heads = config.heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, config.mlp), nn.Linear(config.mlp, d)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d)."""
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = x + self.dropout(self.proj(attention(q, k, v, self.heads)))
        x = x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))
        return x


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention of (B, T, d) inputs; one fused ONNX `Attention` node when exported."""
    scale = 1.0 / math.sqrt(q.shape[-1] // heads)
    if torch.compiler.is_exporting():
        out: Tensor = torch.onnx.ops.attention(q, k, v, q_num_heads=heads, kv_num_heads=heads, scale=scale)[0]
        return out
    q, k, v = (y.reshape(*y.shape[:2], heads, -1).transpose(1, 2) for y in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)


class ViT(nn.Module):
    """Labels and spreads in box units from a normalised batch.

    Parameters
    ----------
    config : ViTConfig
        Shape.
    reference_error : (n,) tensor
        s0 of the information tokens.
    projection : (K, n) tensor
        Start of the information tokens.
    """

    def __init__(self, config: ViTConfig, reference_error: Tensor, projection: Tensor) -> None:
        super().__init__()
        self.config = config
        d = config.dim
        self.tokens: nn.Module
        if config.tokens == "information":
            self.tokens = InformationTokens(config, reference_error, projection)
            # correction to a small regressor on the sufficient statistic (sum of tokens)
            self.statistic = nn.Sequential(nn.Linear(d + 1, 2 * d), nn.GELU(), nn.Linear(2 * d, d))
        else:
            self.tokens = ConvTokens(config)
        if config.context:
            self.snr = nn.Sequential(nn.Linear(1, d), nn.GELU(), nn.Linear(d, d))
            self.scenario = nn.Embedding(len(SCENARIO_NAMES), d)
        self.cls = nn.Parameter(0.02 * torch.randn(1, 1, d))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + PIXELS // config.patch, d))
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d * (1 + (config.pool == "cls+mean")), config.outputs)

    def features(self, x: Normalised) -> Tensor:
        """Pooled features (B, d) or (B, 2 d) that the head sees."""
        tokens = self.tokens(x)  # (B, T, d)
        cls = self.cls.expand(tokens.shape[0], -1, -1)
        if self.config.tokens == "information":
            total = tokens.sum(1) / math.sqrt(tokens.shape[1])
            cls = cls + self.statistic(torch.cat([total.clamp(-50.0, 50.0), x.log_snr], 1))[:, None]
        tokens = torch.cat([cls, tokens], 1) + self.positions  # (B, 1 + T, d)
        if self.config.context:
            tokens = tokens + (self.snr(x.log_snr) + self.scenario(x.scenario))[:, None]
        tokens = self.dropout(tokens)
        for layer in self.layers:
            tokens = layer(tokens)
        tokens = self.norm(tokens)
        pooled = [tokens[:, 0]] if self.config.pool == "cls" else [tokens[:, 0], tokens[:, 1:].mean(1)]
        return torch.cat(pooled, 1)

    def forward(self, x: Normalised) -> Tensor:
        """Head outputs (B, outputs): labels in box units, then log spreads in box units."""
        out: Tensor = self.head(self.features(x))
        return out


def parameter_count(module: nn.Module) -> int:
    """Count trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
