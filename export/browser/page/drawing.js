// SVG elements, axes and numbers.

const SVG = "http://www.w3.org/2000/svg";

/** An SVG element of a class; `children` are elements or text. */
export function element(name, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** A linear map of [from, to] to [start, end]. */
export function scale([from, to], [start, end]) {
  return (value) => start + ((value - from) / (to - from)) * (end - start);
}

/** Round values inside [from, to], about `n` of them, and their decimals (negative for tens and more). */
export function ticks([from, to], n) {
  const rough = (to - from) / n;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= rough);
  const values = [];
  for (let i = Math.ceil(from / step); i * step <= to + 1e-9 * step; i++) values.push(i * step);
  return { values, decimals: -Math.floor(Math.log10(step) + 1e-9) };
}

/** A number with a true minus sign; a dash if it is not finite. */
export function format(value, decimals) {
  if (!Number.isFinite(value)) return "–";
  const text = Math.abs(value).toFixed(decimals);
  return (value < 0 && Number(text) !== 0 ? "−" : "") + text;
}

/** Decimals of a log g with this error: two, more where the error needs them. */
export function decimalsFor(error) {
  if (!(error > 0) || !Number.isFinite(error)) return 2;
  return Math.min(4, Math.max(2, 1 - Math.floor(Math.log10(error / 0.95))));
}
