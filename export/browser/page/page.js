// The page: load the model, read a spectrum, estimate, show.

import { decimalsFor, format } from "./drawing.js";
import { loadEstimator } from "./estimator.js";
import { drawLogG } from "./log_g_axis.js";
import { remarks } from "./quality.js";
import { drawSpectrum } from "./spectrum_figure.js";
import { checkGrid, pixels, readSpectrum } from "./spectrum.js";

const SYMBOLS = { T_eff: "T_eff", log_g: "log g", M_H: "[M/H]", a_M: "[α/M]", C_M: "[C/M]" };
const NUISANCES = {
  survey: "amplitude, continuum tilt (3 %) and velocity (10 km/s) unknown",
  study: "amplitude known, no tilt, at rest",
};
const TRIPLET = [8462, 8712];
const at = (id) => document.getElementById(id);
let shown = null;
let opened = 0;

at("status").textContent = "Loading the model …";
const model = loadEstimator("./bundle");
model.then(showModel, (error) => showProblem(error.message));

at("file").addEventListener("change", ({ target }) => {
  if (target.files.length) open(target.files[0].name, target.files[0].text());
  target.value = "";
});
at("example").addEventListener("click", () =>
  open(
    "Example",
    fetch("./example.csv").then((response) => response.text()),
  ),
);
addEventListener("dragover", (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
});
addEventListener("dragleave", (event) => event.relatedTarget ?? at("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) open(file.name, file.text());
  else showProblem("That was no file; drop a text file with the columns wavelength, flux, error.");
});
new ResizeObserver(() => shown && draw(shown)).observe(at("result"));

/** From the text of a file to its estimate on the page. */
async function open(name, text) {
  const ticket = ++opened; // a later file replaces this one
  shown = null;
  at("result").hidden = true;
  at("problem").hidden = true;
  at("status").textContent = "Estimating …";
  try {
    const { manifest, estimate } = await model;
    const spectrum = readSpectrum(await text);
    checkGrid(spectrum.wave, manifest.grid);
    const row = await estimate(spectrum);
    const said = remarks(row, spectrum, manifest, SYMBOLS);
    row.quality = said.reduce((bits, { bit }) => bits | bit, 0);
    if (ticket === opened) show(name, spectrum, manifest, row, said);
  } catch (error) {
    if (ticket === opened) showProblem(`${name}: ${error.message}`);
  }
}

function show(name, spectrum, manifest, row, said) {
  at("name").textContent = name;
  at("note").textContent = spectrum.note;
  at("labels").replaceChildren(
    ...manifest.labels.filter((label) => label !== "log_g").map((label) => labelRow(label, row, manifest)),
  );
  const decimals = decimalsFor(row.log_g_err);
  const digits = {
    log_g: decimals,
    log_g_err: decimals,
    log_g_lo: decimals,
    log_g_hi: decimals,
    snr_median: 1,
    n_good: 0,
    quality: 0,
  };
  for (const output of document.querySelectorAll("output[data-column]")) {
    const { column } = output.dataset;
    output.dataset.value = row[column];
    output.value = output.dataset.text ?? format(row[column], digits[column] ?? 2);
  }
  at("limit-words").textContent = limitWords(row);
  at("remarks").replaceChildren(...remarkItems(said));
  at("status").textContent = Number.isFinite(row.log_g)
    ? `Done in ${row.milliseconds.toFixed(0)} ms.`
    : "No estimate: see the remarks.";
  at("result").hidden = false;
  at("result").classList.toggle("none", !Number.isFinite(row.log_g));
  shown = { spectrum, grid: manifest.grid, row, decimals, range: logGRange(manifest) };
  draw(shown);
  at("result").dataset.milliseconds = row.milliseconds;
  at("result").dataset.name = name;
}

function draw({ spectrum, grid, row, decimals, range }) {
  const width = (svg) =>
    Math.floor(svg.parentElement.clientWidth - parseFloat(getComputedStyle(svg.parentElement).paddingLeft) * 2);
  const axis = at("log-g-axis");
  drawLogG(axis, Math.floor(axis.getBoundingClientRect().width), row, range, decimals);
  const wave = pixels(grid);
  const arm = [grid.start - grid.step / 2, wave[grid.n - 1] + grid.step / 2];
  const size = drawSpectrum(at("whole-arm"), width(at("whole-arm")), innerWidth < 600 ? 300 : 360, spectrum, grid, arm);
  drawSpectrum(at("triplet"), width(at("triplet")), innerWidth < 760 ? 300 : 410, spectrum, grid, TRIPLET);
  at("bin").textContent = size === 1 ? "one pixel" : `${size} pixels`;
}

function labelRow(label, row, { units }) {
  const decimals = units[label] === "K" ? 0 : 2;
  const line = document.createElement("tr");
  const name = Object.assign(document.createElement("th"), { scope: "row", textContent: SYMBOLS[label] });
  if (label === "T_eff") name.innerHTML = "<i>T</i><sub>eff</sub>";
  const unit = units[label] === "K" && Number.isFinite(row[label]) ? " K" : "";
  line.append(
    name,
    cell(label, format(row[label], decimals)),
    cell(`${label}_sigma`, `± ${format(row[`${label}_sigma`], decimals)}${unit}`),
  );
  return line;
}

function cell(column, text) {
  const output = document.createElement("output");
  Object.assign(output.dataset, { column, text });
  const td = document.createElement("td");
  td.append(output);
  return td;
}

function limitWords({ log_g, log_g_err, log_g_crlb, log_g_crlb_prior }) {
  if (!Number.isFinite(log_g)) return "";
  if (!Number.isFinite(log_g_crlb))
    return "The labels cannot be told apart from this spectrum alone: the estimate is little more than the middle of its range.";
  const bound = format(log_g_crlb, decimalsFor(log_g_crlb));
  if (log_g_crlb > 1.15)
    return `Taken alone, this spectrum says little: no unbiased estimate could be better than ± ${bound}.`;
  const ratio = log_g_err / log_g_crlb;
  if (ratio < 0.98)
    return `The error is smaller than the Cramér–Rao bound of ± ${bound}: the estimate also uses the label range, an unbiased one may not.`;
  return `The error is ${ratio < 1.02 ? "equal to" : `${format(ratio, 2)} times`} the Cramér–Rao bound of ± ${bound}.`;
}

function remarkItems(said) {
  const grave = said.filter((remark) => remark.grave);
  const items = grave.length ? grave : said;
  if (!items.length)
    items.push({ name: "", text: "No remarks: the model fits, and the spectrum resembles those of the training." });
  return items.map(({ name, grave, text }) => {
    const item = document.createElement("li");
    item.className = grave ? "grave" : name ? "remark" : "fine";
    item.textContent = text;
    if (name) item.title = name;
    return item;
  });
}

function showModel({ manifest, sha256, form, runtime }) {
  const { grid, scenario } = manifest;
  const [first, last] = [pixels(grid)[0], pixels(grid)[grid.n - 1]];
  at("grid").textContent =
    `${grid.n} rows, one for each pixel from ${first.toFixed(4)} to ${last.toFixed(4)} Å in steps of ${grid.step.toFixed(6)} Å: ` +
    "wavelength (vacuum, rest frame), flux in any unit, error as one sigma.";
  at("nuisances").textContent = NUISANCES[scenario] ?? `the unknowns of the scenario ${scenario}`;
  at("model").textContent =
    `Model ${manifest.name}, told ${scenario}, SHA-256 ${sha256.slice(0, 12)}; ${form.precision}, ONNX opset ${form.opset}, ${runtime}.`;
  document.body.dataset.bundle = sha256;
  at("status").textContent = "";
}

function showProblem(message) {
  at("status").textContent = "";
  at("problem").textContent = message;
  at("problem").hidden = false;
}

function logGRange({ labels, box }) {
  const i = labels.indexOf("log_g");
  return [box.low[i], box.high[i]];
}
