"""The Vision Transformer: layers on tokens (see `tokens`) of a shape (see `shape`).

References: Dosovitskiy et al. 2021 (ViT); Xiong et al. 2020 (pre-norm); the SpecViT study (C1D tokeniser, p16_h256);
Su et al. 2021 (rotary positions); Shazeer et al. 2017 (gated experts).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specvit_deploy.grid import PFS_MR
from specvit_training.shape import CONFIGS, PIXELS, ViTConfig, named_shape
from specvit_training.tokens import ConvTokens, InformationTokens, Normalised, WindowTokens

__all__ = ["CONFIGS", "LOG_SPREAD", "PIXELS", "SCENARIO_NAMES", "InformationTokens", "Normalised", "ViT", "ViTConfig",
           "attention", "named_shape", "parameter_count"]  # fmt: skip

SCENARIO_NAMES = ("study", "survey")
"""Scenarios that one network serves; an exported graph holds one of them as a constant."""
LOG_SPREAD = (-7.0, 3.0)
"""Range of the log spread, box units."""
CHOSEN = 2
"""Experts that see a token."""


class Layer(nn.Module):
    """Pre-norm transformer layer.

    Residual stream and norms are float32; its products run in the type of their weights (`ViT.lower`).
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        d = config.dim
        self.fused = True
        self.heads, self.experts = config.heads, config.experts
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        hidden = max(1, config.experts) * config.mlp
        self.up, self.down = nn.Linear(d, hidden), nn.Linear(hidden, d)
        if config.experts:
            self.gate = nn.Linear(d, config.experts)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotation: Tensor | None = None) -> Tensor:
        """(B, T, d) -> (B, T, d); `rotation` (2, T, d) holds cosine and sine of rotary positions."""
        inner = self.qkv.weight.dtype
        q, k, v = self.qkv(self.norm1(x).to(inner)).chunk(3, dim=-1)
        if rotation is not None:
            q, k = rotate(q, rotation.to(inner)), rotate(k, rotation.to(inner))
        x = x + self.dropout(self.proj(attention(q, k, v, self.heads, self.fused))).to(x.dtype)
        x = x + self.dropout(self.mlp(self.norm2(x).to(inner))).to(x.dtype)
        return x

    def mlp(self, x: Tensor) -> Tensor:
        """MLP of (B, T, d), or the gated sum of two experts; all are computed, so that no shape depends on data."""
        hidden = F.gelu(self.up(x))
        if self.experts:
            logits = self.gate(x)
            least = logits.topk(CHOSEN, dim=-1).values[..., -1:]
            gates = torch.where(logits >= least, logits, -torch.inf).softmax(-1)
            hidden = hidden.reshape(*gates.shape, -1) * gates[..., None]  # (B, T, experts, mlp)
            hidden = hidden.flatten(-2)
        out: Tensor = self.down(hidden)
        return out


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, fused: bool = True) -> Tensor:
    """Softmax attention of (B, T, d) inputs; when exported one ONNX `Attention` node, or its parts if not `fused`."""
    scale = 1.0 / math.sqrt(q.shape[-1] // heads)
    if fused and torch.compiler.is_exporting():
        out: Tensor = torch.onnx.ops.attention(q, k, v, q_num_heads=heads, kv_num_heads=heads, scale=scale)[0]
        return out
    q, k, v = (y.reshape(*y.shape[:2], heads, -1).transpose(1, 2) for y in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair of neighbouring numbers of (B, T, d) by its angle; `rotation` (2, T, d) is cosine and sine."""
    even, odd = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack([-odd, even], -1).flatten(-2)
    return x * rotation[0] + turned * rotation[1]


def rotary(config: ViTConfig) -> Tensor:
    """Cosine and sine (2, 1 + T, d) of rotary positions; CLS, the first, is not turned."""
    pairs = config.dim // config.heads // 2
    frequency = 10_000.0 ** (-torch.arange(pairs) / pairs)
    position = torch.arange(config.patches + 1)  # tokens from 1, so that CLS keeps angle 0
    angle = (position[:, None] * frequency).repeat_interleave(2, 1).repeat(1, config.heads)
    return torch.stack([angle.cos(), angle.sin()])


def waves(position: Tensor, frequency: Tensor) -> Tensor:
    """Sines and cosines (T, 2 F) of position (T,) times frequency (F,)."""
    angle = position[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], 1)


def sinusoidal(config: ViTConfig) -> Tensor:
    """Fixed positions (1, 1 + T, d) of Vaswani et al. 2017, CLS at 0."""
    half = config.dim // 2
    return waves(torch.arange(config.patches + 1.0), 10_000.0 ** (-torch.arange(half) / half))[None]


def wavelength_features(config: ViTConfig) -> Tensor:
    """Sines and cosines (1, T, d) of ln wavelength at the centres of the tokens.

    Frequencies rise geometrically from one cycle over the arm to one over two tokens.
    """
    centre = config.step * torch.arange(config.patches) + (config.patch - 1) / 2
    wave = torch.as_tensor(PFS_MR.wave, dtype=torch.float64).log()
    middle = (wave[centre.floor().long()] + wave[centre.ceil().long()]) / 2
    half = config.dim // 2
    cycles = max(config.patches / 2, 1.0) ** (torch.arange(half) / max(half - 1, 1))
    return waves((middle - wave[0]) / (wave[-1] - wave[0]), 2 * math.pi * cycles)[None].float()


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
            self.statistic = nn.Sequential(nn.Linear(d + config.context, 2 * d), nn.GELU(), nn.Linear(2 * d, d))
        else:
            self.tokens = (ConvTokens if config.tokens == "conv" else WindowTokens)(config, reference_error)
        if config.context:
            self.snr = nn.Sequential(nn.Linear(1, d), nn.GELU(), nn.Linear(d, d))
            self.scenario = nn.Embedding(len(SCENARIO_NAMES), d)
        self.cls = nn.Parameter(0.02 * torch.randn(1, 1, d))
        if config.positions == "learned":
            self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + config.patches, d))
        elif config.positions == "wavelength":
            self.wavelength = nn.Linear(d, d)
        fixed = {"sinusoidal": sinusoidal, "rope": rotary, "wavelength": wavelength_features}.get(config.positions)
        self.register_buffer("fixed", fixed(config) if fixed else None, persistent=False)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d * len(config.pool.split("+")), config.outputs)

    fixed: Tensor

    def lower(self, dtype: torch.dtype) -> None:
        """Run the products of all layers in `dtype`; embedding, residual stream, norms and head stay float32."""
        for layer in self.layers:
            for name, module in layer.named_children():
                if not name.startswith("norm"):
                    module.to(dtype)

    def decompose(self) -> None:
        """Export attention as its parts, for opsets and engines without the fused operator."""
        for layer in self.layers:
            assert isinstance(layer, Layer)
            layer.fused = False

    def embed(self, x: Normalised) -> Tensor:
        """CLS and tokens (B, 1 + T, d) at their positions."""
        tokens: Tensor = self.tokens(x)  # (B, T, d)
        cls = self.cls.expand(tokens.shape[0], -1, -1)
        if self.config.tokens == "information":
            total = (tokens.sum(1) / math.sqrt(tokens.shape[1])).clamp(-50.0, 50.0)
            told = [total, x.log_snr] if self.config.context else [total]
            cls = cls + self.statistic(torch.cat(told, 1))[:, None]
        if self.config.positions == "wavelength":
            tokens = tokens + self.wavelength(self.fixed)
        tokens = torch.cat([cls, tokens], 1)
        if self.config.positions == "learned":
            tokens = tokens + self.positions
        elif self.config.positions == "sinusoidal":
            tokens = tokens + self.fixed
        if self.config.context:
            tokens = tokens + (self.snr(x.log_snr) + self.scenario(x.scenario))[:, None]
        return tokens

    def features(self, x: Normalised) -> Tensor:
        """Pooled features (B, d) or (B, 2 d) that the head sees."""
        tokens = self.dropout(self.embed(x))
        rotation = self.fixed if self.config.positions == "rope" else None
        for layer in self.layers:
            tokens = layer(tokens, rotation)
        tokens = self.norm(tokens)
        pooled = {"cls": tokens[:, 0], "mean": tokens[:, 1:].mean(1)}
        return torch.cat([pooled[name] for name in self.config.pool.split("+")], 1)

    def forward(self, x: Normalised) -> Tensor:
        """Head outputs (B, outputs): labels in box units, then log spreads in box units."""
        out: Tensor = self.head(self.features(x))
        return out


def parameter_count(module: nn.Module) -> int:
    """Count trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
