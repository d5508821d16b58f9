// Text to spectrum: columns wavelength, flux, error, on the grid of the model.

export class SpectrumError extends Error {}

const NAMES = {
  wavelength: "wave",
  wave: "wave",
  lambda: "wave",
  flux: "flux",
  error: "error",
  err: "error",
  sigma: "error",
  ivar: "ivar",
  mask: "mask",
};
const TOLERANCE = 0.05; // pixels, as in Python

/**
 * Read a table of comma-, semicolon- or blank-separated columns; lines that begin with # are comments.
 * A pixel that is masked (mask not 0) has NaN for its flux.
 * Returns {note, wave, flux, error}: the first comment, then Float64Arrays.
 */
export function readSpectrum(text) {
  const lines = text.replace(/^\uFEFF/, "").split(/\r\n|\n|\r/);
  const comment = lines.find((line) => line.startsWith("#"));
  const rows = lines
    .map((line, i) => ({ number: i + 1, line: line.trim() }))
    .filter(({ line }) => line && !line.startsWith("#"));
  if (!rows.length) throw new SpectrumError("The file is empty; give three columns: wavelength, flux, error.");
  const names = columnNames(rows);
  const data = Object.fromEntries(names.map((name) => [name, new Float64Array(rows.length)]));
  rows.forEach(({ number, line }, i) => {
    const cells = split(line);
    if (cells.length !== names.length)
      throw new SpectrumError(`Line ${number} has ${cells.length} columns, not ${names.length}; complete it.`);
    names.forEach((name, j) => (data[name][i] = toNumber(cells[j], number)));
  });
  const { wave, flux, mask } = data;
  const error = data.error ?? data.ivar.map((value) => 1 / Math.sqrt(value));
  if (mask) flux.forEach((_, i) => mask[i] !== 0 && (flux[i] = NaN));
  return { note: comment ? comment.replace(/^#+\s*/, "").trim() : "", wave, flux, error };
}

/** Refuse wavelengths that are not the pixels of the model, and say what they look like. */
export function checkGrid(wave, grid) {
  const expected = pixels(grid);
  const isGrid = (values) =>
    values.length === grid.n && values.every((value, i) => Math.abs(value - expected[i]) <= TOLERANCE * grid.step);
  if (isGrid(wave)) return;
  let hint = "resample the spectrum to these pixels";
  if (wave.some((value) => !Number.isFinite(value)))
    hint = "some wavelengths are not numbers: keep bad pixels, and put NaN in their flux";
  else if (isGrid(wave.map(vacuumOfAir))) hint = "they look like air wavelengths: convert them to vacuum";
  else if (isGrid(wave.map((value) => 10 * value))) hint = "they look like nm: multiply them by 10";
  else if (isGrid(wave.map((value) => 1e4 * value))) hint = "they look like micron: multiply them by 10,000";
  else if (isGrid(wave.map((value) => 10 ** value))) hint = "they look like logarithms: raise 10 to them";
  else if (isGrid([...wave].reverse())) hint = "they run from red to blue: reverse the rows";
  else if (wave.length === grid.n && wave[0] > grid.start - 30 && wave[0] < grid.start + 30)
    hint = "bring the spectrum to the rest frame and resample it to these pixels";
  throw new SpectrumError(
    `The file has ${count(wave.length, "pixel")} from ${show(wave[0])} to ${show(wave[wave.length - 1])} Å; ` +
      `the model reads ${count(grid.n, "pixel")} from ${show(expected[0])} to ${show(expected[grid.n - 1])} Å ` +
      `in steps of ${grid.step.toFixed(6)} Å (vacuum): ${hint}.`,
  );
}

/** Pixel centres of a grid, Å. */
export function pixels({ start, step, n }) {
  return Float64Array.from({ length: n }, (_, i) => start + step * i);
}

/** Whether each pixel carries information: finite flux, finite positive error. */
export function goodPixels(flux, error) {
  return Array.from(flux, (value, i) => Number.isFinite(value) && Number.isFinite(error[i]) && error[i] > 0);
}

/** Flux and error in single precision, brought near one by a power of two, so that any flux unit fits. */
export function toSingle(flux, error) {
  const size = [...error].filter((value) => Number.isFinite(value) && value > 0).sort((a, b) => a - b);
  const factor = size.length ? 2 ** -Math.floor(Math.log2(size[size.length >> 1])) : 1;
  const scaled = (values) => Float32Array.from(values, (value) => value * factor);
  return { flux: scaled(flux), error: scaled(error) };
}

function columnNames(rows) {
  const first = split(rows[0].line);
  if (isBlank(first[0]) || !Number.isNaN(Number(first[0]))) {
    if (first.length !== 3)
      throw new SpectrumError(
        `The file has ${count(first.length, "column")} and no header; give three (wavelength, flux, error) or name them in the first line.`,
      );
    return ["wave", "flux", "error"];
  }
  rows.shift();
  const names = first.map((cell) => NAMES[cell.toLowerCase().replace(/["']/g, "")] ?? `other ${cell}`);
  for (const [name, words] of [
    ["wave", "wavelength"],
    ["flux", "flux"],
  ])
    if (!names.includes(name)) throw new SpectrumError(`The header names no column '${words}'; add it.`);
  if (!names.includes("error") && !names.includes("ivar"))
    throw new SpectrumError("The header names no column 'error' (1 sigma) or 'ivar'; the estimate needs it.");
  if (!rows.length) throw new SpectrumError("There is nothing below the header; add one row for each pixel.");
  return names;
}

function split(line) {
  const separator = line.includes(",") ? "," : line.includes(";") ? ";" : /\s+/;
  return line.split(separator).map((cell) => cell.trim());
}

function isBlank(cell) {
  return cell === "" || cell === "--" || /^[+-]?nan$/i.test(cell);
}

function toNumber(cell, line) {
  if (isBlank(cell)) return NaN;
  if (/^[+-]?inf(inity)?$/i.test(cell)) return cell.startsWith("-") ? -Infinity : Infinity;
  const value = Number(cell);
  if (Number.isNaN(value))
    throw new SpectrumError(`Line ${line}: '${cell}' is not a number; write NaN for a bad pixel.`);
  return value;
}

/** Vacuum wavelength of an air wavelength (Å): the inverse of Ciddor (1996) as VALD gives it. */
function vacuumOfAir(air) {
  const s2 = (1e4 / air) ** 2;
  return (
    air *
    (1 + 8.336624212083e-5 + 2.408926869968e-2 / (130.1065924522 - s2) + 1.599740894897e-4 / (38.92568793293 - s2))
  );
}

function show(wavelength) {
  return Number.isFinite(wavelength) ? wavelength.toFixed(2) : String(wavelength);
}

function count(n, thing) {
  return `${n.toLocaleString("en")} ${thing}${n === 1 ? "" : "s"}`;
}
