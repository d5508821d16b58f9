// Estimate and limits on one axis of log g.

import { decimalsFor, element, format, scale, ticks } from "./drawing.js";

const KINDS = [
  ["giants", 1.0, 2.5],
  ["subgiants", 2.5, 3.5],
  ["dwarfs", 3.5, 5.0],
];
const ROW = 46;
const TOP = 34;

/** Draw into `svg`, `width` pixels wide: the 68 % interval with the estimate, and each bound as a bracket around it. */
export function drawLogG(svg, width, row, range, decimals) {
  const height = TOP + 3 * ROW + 54;
  const x = scale(range, [10, width - 10]);
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("height", height);
  svg.setAttribute("aria-label", describe(row, decimals));
  const bottom = TOP + 3 * ROW + 6;

  KINDS.forEach(([kind, from, to], i) => {
    if (i % 2)
      svg.append(element("rect", { class: "kind-band", x: x(from), y: 0, width: x(to) - x(from), height: bottom }));
    svg.append(element("text", { class: "kind", x: (x(from) + x(to)) / 2, y: 16, "text-anchor": "middle" }, kind));
  });
  svg.append(element("path", { class: "axis", d: `M${x(range[0])} ${bottom}H${x(range[1])}` }));
  for (const value of ticks(range, width > 420 ? 8 : 4).values) {
    svg.append(element("path", { class: "axis", d: `M${x(value)} ${bottom}v5` }));
    svg.append(
      element(
        "text",
        { class: "tick", x: x(value), y: bottom + 20, "text-anchor": "middle" },
        format(value, Number.isInteger(value) ? 0 : 1),
      ),
    );
  }
  svg.append(
    element(
      "text",
      { class: "axis-name", x: x((range[0] + range[1]) / 2), y: bottom + 42, "text-anchor": "middle" },
      "log g (cm s⁻²)",
    ),
  );
  if (!Number.isFinite(row.log_g)) return;

  svg.append(element("path", { class: "estimate-line", d: `M${x(row.log_g)} ${TOP}V${bottom}` }));
  const bars = [
    {
      name: "68 % interval",
      kind: "interval",
      from: row.log_g_lo,
      to: row.log_g_hi,
      text: `${format(row.log_g_lo, decimals)} to ${format(row.log_g_hi, decimals)}`,
    },
    { name: "Cramér–Rao bound", kind: "bound", ...around(row.log_g, row.log_g_crlb), text: plusMinus(row.log_g_crlb) },
    {
      name: "with prior",
      kind: "bound-prior",
      ...around(row.log_g, row.log_g_crlb_prior),
      text: plusMinus(row.log_g_crlb_prior),
    },
  ];
  bars.forEach((bar, i) => drawBar(svg, bar, x, range, TOP + i * ROW + 30));
  svg.append(element("circle", { class: "estimate", cx: x(row.log_g), cy: TOP + 30, r: 6.5 }));
}

function drawBar(svg, { name, kind, from, to, text }, x, range, y) {
  const [a, b] = [Math.max(from, range[0]), Math.min(to, range[1])].map(x);
  if (kind === "interval")
    svg.append(element("rect", { class: kind, x: a, y: y - 5, width: b - a, height: 10, rx: 5 }));
  else {
    const cap = (end, inside, sign) =>
      inside ? `M${end} ${y - 6}v12` : `M${end - 6 * sign} ${y - 5}l${6 * sign} 5l${-6 * sign} 5`;
    const ends = cap(a, from >= range[0], -1) + cap(b, to <= range[1], 1);
    svg.append(
      element("path", { class: kind, d: `M${a} ${y}H${b}` }),
      element("path", { class: `${kind} cap`, d: ends }),
    );
  }
  const left = x(range[0]);
  const right = x(range[1]);
  svg.append(
    element("text", { class: "bar-name", x: left, y: y - 13 }, name),
    element("text", { class: "bar-value", x: right, y: y - 13, "text-anchor": "end" }, text),
  );
}

function around(center, half) {
  return { from: center - half, to: center + half };
}

function plusMinus(value) {
  return Number.isFinite(value) ? `± ${format(value, decimalsFor(value))}` : "none: labels not identifiable";
}

function describe(row, decimals) {
  if (!Number.isFinite(row.log_g)) return "Axis of log g from 1 to 5; no estimate.";
  return (
    `Axis of log g. Estimate ${format(row.log_g, decimals)}, 68 percent interval ${format(row.log_g_lo, decimals)} to ` +
    `${format(row.log_g_hi, decimals)}. Cramér–Rao bound ${plusMinus(row.log_g_crlb)}, with prior ` +
    `${plusMinus(row.log_g_crlb_prior)}.`
  );
}
