"""Shapes of the Vision Transformer: one frozen dataclass, and the named ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from specvit_deploy.errors import SpecVitError

PIXELS = 4096
CHOICES = {
    "tokens": ("information", "conv", "sw"),
    "positions": ("learned", "sinusoidal", "rope", "wavelength"),
    "pool": ("cls", "mean", "cls+mean"),
}


@dataclass(frozen=True)
class ViTConfig:
    """Shape of the network.

    Parameters
    ----------
    tokens : str
        "information" (see `tokens`), "conv" (the study's C1D: one shared convolution of the residual flux) or "sw"
        (sliding window: the same map as a linear layer on windows, with the start of a transformer's linear layer).
    patch, dim, depth, heads, mlp : int
        Pixels of a token, width, layers, attention heads, width of the hidden layer of each MLP.
    outputs : int
        5 labels and 5 log spreads; 1 for the study's log g-only head.
    dropout : float
        On the embedded tokens and in both branches of a layer, while training.
    context : bool
        Whether the network is told the spectrum's S/N and the scenario (nuisances) to marginalise over.
    pool : str
        What the head sees: "cls", "mean" (of all other tokens) or "cls+mean".
    look : bool
        Whether the likelihood around the estimate corrects it (`second_look`).
    stride : int
        Pixels from one token to the next; 0 is `patch`, less is overlap.
    noise_channels : bool
        conv, sw: whitened residual and log10 of the relative information as two channels, not the residual alone.
    positions : str
        "learned", "sinusoidal" (Vaswani et al. 2017), "rope" (rotary, Su et al. 2021) or "wavelength" (a linear map
        of sines and cosines of the ln of each token's central wavelength).
    stem : int
        conv, sw: residual blocks of depth-wise and pointwise convolution before the patches are cut.
    experts : int
        MLPs of a layer, of which a gate takes two for each token (Shazeer et al. 2017); 0 is one plain MLP.

    Raises
    ------
    SpecVitError
        If the parts do not fit together.
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
    stride: int = 0
    noise_channels: bool = False
    positions: str = "learned"
    stem: int = 0
    experts: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value).__name__ != field.type and not (field.type == "float" and type(value) is int):
                raise SpecVitError(f"{field.name} = {value!r} of a network is no {field.type}; write it as one")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise SpecVitError(f"no {name} '{getattr(self, name)}'; choose one of {', '.join(choices)}")
        if min(self.patch, self.dim, self.depth, self.heads, self.mlp) < 1 or min(self.stem, self.stride) < 0:
            raise SpecVitError("patch, dim, depth, heads and mlp are at least 1, stem and stride at least 0")
        if self.patch > PIXELS or self.step > self.patch or (PIXELS - self.patch) % self.step:
            raise SpecVitError(
                f"patches of {self.patch} pixels every {self.step} do not tile {PIXELS}; take powers of two, "
                "stride no larger than patch"
            )
        multiple = self.heads * (2 if self.positions == "rope" else 1)
        if self.dim % multiple or (self.positions in ("sinusoidal", "wavelength") and self.dim % 2):
            raise SpecVitError(
                f"a width of {self.dim} does not divide into {self.heads} heads with {self.positions} positions; "
                f"take a multiple of {2 * self.heads}"
            )
        if self.tokens == "information" and (self.noise_channels or self.stem):
            raise SpecVitError("information tokens hold the noise already; noise_channels and stem need conv or sw")
        if self.experts == 1 or self.experts < 0:
            raise SpecVitError("two experts see each token; take 0 (a plain MLP) or at least 2")
        if self.outputs not in (1, 10) or not 0 <= self.dropout < 1:
            raise SpecVitError("outputs are 10 (labels and spreads) or 1 (log g), dropout lies in 0 to 1")
        if self.look and self.outputs != 10:
            raise SpecVitError("the second look needs labels and spreads; take outputs = 10")

    @property
    def step(self) -> int:
        """Pixels from one token to the next."""
        return self.stride or self.patch

    @property
    def patches(self) -> int:
        """Tokens of a spectrum, CLS aside."""
        return (PIXELS - self.patch) // self.step + 1


SMALL = ViTConfig("information", patch=64, dim=96, depth=3, heads=4, mlp=384, pool="cls+mean")
COMPACT = ViTConfig("information", patch=128, dim=64, depth=3, heads=4, mlp=256, pool="cls+mean")
CONFIGS = {
    "testing": ViTConfig("information", patch=256, dim=32, depth=1, heads=2, mlp=64, pool="cls+mean"),
    "ablation": COMPACT,
    "compact-look": replace(COMPACT, look=True),
    "lean-look": replace(COMPACT, patch=256, depth=1, look=True),
    "small": SMALL,
    "small-look": replace(SMALL, look=True),
    "p16_h256_L6": ViTConfig("conv", patch=16, dim=256, depth=6, heads=8, mlp=1024, dropout=0.1),
    "p16_h256_L12": ViTConfig("conv", patch=16, dim=256, depth=12, heads=8, mlp=1024, dropout=0.1),
    "p16_h512_L8": ViTConfig("conv", patch=16, dim=512, depth=8, heads=16, mlp=2048, dropout=0.1),
    "p16_h256_L6_logg": ViTConfig(
        "conv", patch=16, dim=256, depth=6, heads=8, mlp=1024, dropout=0.1, outputs=1, context=False
    ),
}


def named_shape(model: str, changes: Mapping[str, Any] | None = None) -> ViTConfig:
    """Look up a named shape, with some of its fields changed.

    Raises
    ------
    SpecVitError
        For an unknown name or field, or if the parts do not fit together.
    """
    if model not in CONFIGS:
        raise SpecVitError(f"no network '{model}'; choose one of {', '.join(CONFIGS)}")
    changes = changes or {}
    known = [field.name for field in fields(ViTConfig)]
    if unknown := sorted(set(changes) - set(known)):
        raise SpecVitError(f"a network has no {', '.join(unknown)}; [shape] takes {', '.join(known)}")
    return replace(CONFIGS[model], **changes)
