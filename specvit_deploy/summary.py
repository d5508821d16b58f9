"""A few lines about a result file, for the terminal."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from specvit_deploy.quality import FATAL, Quality
from specvit_deploy.result_formats import Result

NAMES = ("log_g", "log_g_err", "log_g_crlb", "snr_median", "quality")
SEEN = 1_000_000
"""Rows behind the medians, about: of more every so-manieth counts, so that memory has a bound."""


def summarise(path: Path) -> str:
    """Describe a result file: counts, typical uncertainty against the limit, quality bits."""
    rows, results, counts, blocks = 0, 0, dict.fromkeys(Quality, 0), []
    with Result(path) as result:
        about = result.attributes
        step = max(1, int(about.get("rows", 0)) // SEEN)
        for block in result.blocks(NAMES):
            bits = block["quality"]
            blocks.append({name: block[name][-rows % step :: step] for name in NAMES})
            rows, results = rows + len(bits), results + int(((bits & int(FATAL)) == 0).sum())
            for bit in counts:
                counts[bit] += int(((bits & int(bit)) != 0).sum())
    log_g, err, crlb, snr, quality = (np.concatenate([block[name] for block in blocks]) for name in NAMES)
    header = f"{about['bundle']} {str(about['bundle_sha256'])[:12]}, {about['engine']}"
    valid = (quality & int(FATAL)) == 0
    lines = [f"wrote {path}: {rows} rows, {results} with log_g ({header})"]
    if valid.any():
        low, middle, high = np.percentile(log_g[valid], [16, 50, 84])
        lines.append(f"  log_g {middle:.2f} ({low:.2f} to {high:.2f}), median S/N {np.median(snr[valid]):.1f}")
        lines.append(
            f"  median log_g_err {np.median(err[valid]):.3f} dex, median log_g_crlb {np.median(crlb[valid]):.3f} dex"
        )
    else:
        lines.append("  no row has a result: look at masks, errors and the order of wavelengths in the catalogue")
    lines += [f"  {bit.name}: {count}" for bit, count in counts.items() if count]
    return "\n".join(lines)
