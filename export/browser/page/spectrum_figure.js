// The spectrum: binned flux, the error of a pixel as a band, every pixel as a point, Ca II triplet and mask.

import { element, format, scale, ticks } from "./drawing.js";
import { goodPixels, pixels } from "./spectrum.js";

const CA_II = [8500.35, 8544.44, 8664.52]; // vacuum, Å
const LEFT = 46;
const RIGHT = 8;
const TOP = 40;
const MASK = 8;

/** Draw the part of a spectrum between two wavelengths into `svg`; returns the pixels of a bin. */
export function drawSpectrum(svg, width, height, { flux, error }, grid, [from, to]) {
  const wave = pixels(grid);
  const good = goodPixels(flux, error);
  const first = Math.max(0, Math.ceil((from - grid.start) / grid.step));
  const last = Math.min(grid.n, Math.floor((to - grid.start) / grid.step) + 1);
  const x = scale([from, to], [LEFT, width - RIGHT]);
  const bottom = height - 60;
  const size = Math.max(1, Math.round((1.8 * (last - first)) / (width - LEFT - RIGHT)));
  const binned = bins(flux, error, good, first, last, size);
  const { range, power } = fluxRange(binned);
  const y = scale(range ?? [0, 1], [bottom - 4, TOP]);

  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("height", height);
  const id = `clip-${svg.id}`;
  svg.append(
    element(
      "clipPath",
      { id },
      element("rect", { x: LEFT, y: TOP - 2, width: width - LEFT - RIGHT, height: bottom - TOP + 2 }),
    ),
  );
  drawAxes(svg, { x, y, width, bottom, from, to, range, power });

  const inside = element("g", { "clip-path": `url(#${id})` });
  const points = [];
  for (let i = first; i < last; i++) if (good[i]) points.push(`M${x(wave[i]).toFixed(1)} ${y(flux[i]).toFixed(1)}h0`);
  inside.append(element("path", { class: "pixels", d: points.join("") }));
  for (const run of runs(binned)) {
    const at = (bin, value) => `${x(grid.start + grid.step * bin.pixel).toFixed(1)} ${y(value).toFixed(1)}`;
    const line = run.map((bin) => at(bin, bin.flux));
    const upper = run.map((bin) => at(bin, bin.flux + bin.error));
    const lower = run.map((bin) => at(bin, bin.flux - bin.error)).reverse();
    inside.prepend(element("path", { class: "error-band", d: `M${upper.join("L")}L${lower.join("L")}Z` }));
    inside.append(element("path", { class: "flux", d: `M${line.join("L")}` }));
  }
  svg.append(inside);
  drawMask(svg, good, first, last, (i) => x(grid.start + grid.step * (i - 0.5)), bottom);
  drawTriplet(svg, x, bottom);
  return size;
}

function drawAxes(svg, { x, y, width, bottom, from, to, range, power }) {
  const baseline = bottom + MASK + 4;
  svg.append(element("path", { class: "axis", d: `M${LEFT} ${baseline}H${width - RIGHT}` }));
  const horizontal = ticks([from, to], Math.min(9, width / 90));
  for (const value of horizontal.values) {
    svg.append(element("path", { class: "axis", d: `M${x(value)} ${baseline}v5` }));
    svg.append(
      element("text", { class: "tick", x: x(value), y: baseline + 19, "text-anchor": "middle" }, format(value, 0)),
    );
  }
  svg.append(
    element(
      "text",
      { class: "axis-name", x: width - RIGHT, y: baseline + 40, "text-anchor": "end" },
      "vacuum wavelength (Å)",
    ),
  );
  svg.append(element("text", { class: "axis-name", x: 0, y: 14 }, power ? `flux (10${superscript(power)})` : "flux"));
  if (!range) {
    svg.append(
      element(
        "text",
        { class: "tick", x: x((from + to) / 2), y: bottom / 2, "text-anchor": "middle" },
        "no usable pixels",
      ),
    );
    return;
  }
  const vertical = ticks(range, 4);
  for (const value of vertical.values) {
    svg.append(element("path", { class: "grid", d: `M${LEFT} ${y(value)}H${width - RIGHT}` }));
    svg.append(
      element(
        "text",
        { class: "tick", x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" },
        format(value / 10 ** power, Math.max(0, vertical.decimals + power)),
      ),
    );
  }
}

function drawMask(svg, good, first, last, edge, bottom) {
  const width = edge(last) - edge(first);
  svg.append(element("rect", { class: "good", x: edge(first), y: bottom + 2, width, height: MASK }));
  for (let i = first; i < last; i++) {
    if (good[i]) continue;
    let end = i;
    while (end < last && !good[end]) end++;
    svg.append(
      element("rect", {
        class: "bad",
        x: edge(i),
        y: bottom + 2,
        width: Math.max(1.2, edge(end) - edge(i)),
        height: MASK,
      }),
    );
    i = end;
  }
}

function drawTriplet(svg, x, bottom) {
  const lines = CA_II.map(x);
  const d = `M${lines[0]} 20H${lines[2]}` + lines.map((at) => `M${at} 20v12`).join("");
  svg.append(element("path", { class: "triplet", d }));
  svg.append(element("path", { class: "triplet-line", d: lines.map((at) => `M${at} 34V${bottom}`).join("") }));
  const name = (at, text) =>
    svg.append(element("text", { class: "triplet-name", x: at, y: 13, "text-anchor": "middle" }, text));
  if (lines[1] - lines[0] < 48) name((lines[0] + lines[2]) / 2, "Ca II");
  else lines.forEach((at, i) => name(at, format(CA_II[i], 1)));
}

/** Inverse-variance-weighted mean flux and mean error of each `size` pixels; null where all are bad. */
function bins(flux, error, good, first, last, size) {
  const found = [];
  for (let start = first; start < last; start += size) {
    let [weights, sum, errors, n] = [0, 0, 0, 0];
    for (let i = start; i < Math.min(start + size, last); i++) {
      if (!good[i]) continue;
      const weight = error[i] ** -2;
      [weights, sum, errors, n] = [weights + weight, sum + weight * flux[i], errors + error[i], n + 1];
    }
    found.push(
      n ? { pixel: start + (Math.min(size, last - start) - 1) / 2, flux: sum / weights, error: errors / n } : null,
    );
  }
  return found;
}

function runs(found) {
  const all = [[]];
  for (const bin of found) bin ? all.at(-1).push(bin) : all.push([]);
  return all.filter((run) => run.length);
}

/** Range of flux that shows the lines and nearly every error, whatever sky lines do, and the power of ten to take out; null without pixels. */
function fluxRange(binned) {
  const seen = binned.filter(Boolean);
  if (!seen.length) return { range: null, power: 0 };
  const quantile = (values, q) => values.sort((a, b) => a - b)[Math.round(q * (values.length - 1))];
  const bottom = Math.min(
    quantile(
      seen.map((bin) => bin.flux),
      0.002,
    ),
    quantile(
      seen.map((bin) => bin.flux - bin.error),
      0.05,
    ),
  );
  const top = quantile(
    seen.map((bin) => bin.flux + 2 * bin.error),
    0.9,
  );
  const margin = 0.08 * (top - bottom) || Math.abs(top) || 1;
  const range = [bottom - margin, top + margin];
  const magnitude = Math.floor(Math.log10(Math.max(...range.map(Math.abs))));
  return { range, power: magnitude < -2 || magnitude > 3 ? magnitude : 0 };
}

function superscript(power) {
  return [...String(power)].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit] ?? "⁻").join("");
}
