"""Fit the second look to a trained network: draw spectra once, keep what is seen of each, train on that."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from specvit_training.second_look import SecondLook
from specvit_training.stream import Batch
from specvit_training.vit import Normalised

ROWS = 512
"""Spectra a step."""
LR = 1e-3
JITTER = 0.02
"""Noise on what is seen, in its standard deviations: what differs by rounding must not matter."""
EMA = 0.999
"""Decay of the averaged weights; a short fit averages over its last tenth."""
REPORTS = 5


def fit_second_look(
    look: SecondLook,
    batches: Iterator[Batch],
    spectra: int,
    epochs: int,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> None:
    """Fit `look` in place; its network stays as it is.

    Parameters
    ----------
    look : SecondLook
        With a trained network.
    batches : iterator of Batch
        Spectra that the network was not trained on.
    spectra : int
        How many of them to draw; a tenth judges the fit, in the log alone.
    epochs : int
        How often each is used.
    loss : callable
        Of output (B, 10), target (B, 5) and its spread (B, 5).
    seed : int
        Of the order.
    log : callable
        Told the loss before and after on the held spectra.
    """
    device = look.seen_mean.device
    look.eval()
    columns: list[tuple[Tensor, ...]] = []
    count = 0
    with torch.no_grad():
        while count < spectra:
            batch = next(batches)
            x = Normalised(*(t.to(device) for t in batch.inputs))
            first = look.network(x).float()
            row = (first, look.seen(first, x), x.scenario, batch.target.to(device), batch.spread.to(device))
            counted = slice(None) if batch.weight is None else batch.weight.to(device) > 0  # held-out labels
            columns.append(tuple(column[counted] for column in row))
            count += len(columns[-1][0])
    first, seen, scenario, target, spread = (torch.cat(column) for column in zip(*columns, strict=True))
    look.seen_mean.copy_(seen.mean(0))
    look.seen_sd.copy_(seen.std(0) + 1e-6)
    held = max(1, count // 10)
    parameters = [*look.look.parameters(), *look.scenario.parameters()]
    trained = nn.ModuleList([look.look, look.scenario])
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    steps = max(1, epochs * (count - held) // ROWS)
    decay = min(EMA, max(0.0, 1.0 - 10.0 / steps))
    average = AveragedModel(trained, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / 100) * (0.505 + 0.495 * math.cos(math.pi * step / steps))
        rows = (held + torch.randint(count - held, (ROWS,), generator=generator)).to(device)
        jitter = (JITTER * torch.randn(ROWS, seen.shape[1], generator=generator)).to(device)
        out = look.conclude(first[rows], seen[rows] + jitter * look.seen_sd, scenario[rows])
        value = loss(out, target[rows], spread[rows])
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        average.update_parameters(trained)
        if (step + 1) % max(1, steps // REPORTS) == 0:
            log(f"second look: step {step + 1} of {steps}")
    trained.load_state_dict(average.module.state_dict())
    with torch.no_grad():
        judged = look.conclude(first[:held], seen[:held], scenario[:held])
        before, after = (float(loss(out, target[:held], spread[:held])) for out in (first[:held], judged))
    log(f"second look: loss {before:.4f} -> {after:.4f} on {held} held spectra")
