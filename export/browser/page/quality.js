// What a reader should know about a row: the bits of `specvit_deploy.quality`, and in words.

export const MIN_GOOD_PIXELS = 256;
const PARTIAL_BELOW = 0.5;
const EDGE = 0.02;
const NOISE_FREE = 0.3;

/** Remarks on a row: a list of {bit, name, grave, text}. */
export function remarks(row, { flux, error }, { domain, box, labels, grid, units }, symbols) {
  const few = row.n_good < MIN_GOOD_PIXELS;
  const fluxPixels = flux.filter(Number.isFinite).length;
  const edge = labels.filter((label, i) => {
    const position = (row.labels[i] - box.low[i]) / (box.high[i] - box.low[i]);
    return position < EDGE || position > 1 - EDGE;
  });
  const range = (label) => {
    const i = labels.indexOf(label);
    return `${symbols[label]} (${box.low[i]} to ${box.high[i]} ${units[label] === "K" ? "K" : "dex"})`;
  };
  const chi2Limit = interpolate(row.snr_median, domain.chi2_snr, domain.chi2_reduced);
  const all = [
    [
      1,
      "NO_DATA",
      few && fluxPixels < MIN_GOOD_PIXELS,
      true,
      `Only ${row.n_good} pixels carry information; an estimate needs ${MIN_GOOD_PIXELS}.`,
    ],
    [
      2,
      "BAD_ERROR",
      few && fluxPixels >= MIN_GOOD_PIXELS,
      true,
      "The flux is there, but its errors are unusable: zero, negative or not finite.",
    ],
    [4, "PARTIAL_COVERAGE", row.n_good < PARTIAL_BELOW * grid.n, false, "Fewer than half of the pixels are good."],
    [
      8,
      "LOW_SNR",
      row.snr_median < domain.snr[0],
      false,
      `The S/N is below that of the training spectra (${domain.snr[0].toFixed(1)}).`,
    ],
    [
      16,
      "HIGH_SNR",
      row.snr_median > domain.snr[1],
      false,
      `The S/N is above that of the training spectra (${domain.snr[1].toFixed(0)}).`,
    ],
    [
      32,
      "LABEL_EDGE",
      edge.length > 0,
      false,
      `At the edge of the range of ${edge.map(range).join(" and ")}: the true star may lie outside.`,
    ],
    [
      64,
      "POOR_FIT",
      (row.chi2_reduced - 1) * Math.sqrt(row.n_good / flux.length) > chi2Limit - 1,
      false,
      `Poor fit: reduced χ² is ${row.chi2_reduced.toFixed(2)}, training spectra of this S/N stay below ${chi2Limit.toFixed(2)}.`,
    ],
    [
      128,
      "OUT_OF_DISTRIBUTION",
      row.latent_distance > interpolate(row.snr_median, domain.chi2_snr, domain.latent_distance),
      false,
      "The spectrum is unlike those of the training.",
    ],
    [4096, "NEGATIVE_FLUX", row.snr_median <= 0, false, "The median flux is not positive."],
    [
      0,
      "NOISE_FREE",
      looksNoiseFree(flux, error),
      false,
      "The flux scatters far less than its errors say. If it is a model without noise, the error below does not describe it.",
    ],
  ];
  return all.filter(([, , found]) => found).map(([bit, name, , grave, text]) => ({ bit, name, grave, text }));
}

/** Median of flux / error over good pixels, in single precision; NaN without any. */
export function medianSnr(flux, error, good) {
  const ratio = flux
    .map((value, i) => value / error[i])
    .filter((_, i) => good[i])
    .sort();
  if (!ratio.length) return NaN;
  return Math.fround(Math.fround(ratio[(ratio.length - 1) >> 1] + ratio[ratio.length >> 1]) / 2);
}

/** Whether neighbouring pixels scatter far less than their errors say: the second difference of white noise has 6 times its variance. */
function looksNoiseFree(flux, error) {
  const ratio = [];
  for (let i = 1; i < flux.length - 1; i++) {
    const expected = Math.hypot(error[i - 1], 2 * error[i], error[i + 1]);
    const r = Math.abs(flux[i - 1] - 2 * flux[i] + flux[i + 1]) / expected;
    if (Number.isFinite(r)) ratio.push(r);
  }
  if (ratio.length <= (flux.length - 2) / 2) return false;
  ratio.sort((a, b) => a - b);
  return ratio[ratio.length >> 1] / 0.6745 < NOISE_FREE;
}

function interpolate(x, xs, ys) {
  if (!(x > xs[0])) return ys[0];
  const i = xs.findIndex((value) => value >= x);
  if (i < 0) return ys[ys.length - 1];
  return ys[i - 1] + ((ys[i] - ys[i - 1]) * (x - xs[i - 1])) / (xs[i] - xs[i - 1]);
}
