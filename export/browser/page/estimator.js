// A bundle on onnxruntime-web: verify its hashes, run its graph, make one row of results.

import * as ort from "./runtime/ort.wasm.bundle.min.mjs";
import { medianSnr, MIN_GOOD_PIXELS } from "./quality.js";
import { goodPixels, toSingle } from "./spectrum.js";

const FORM = "fp32";
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = { wasm: new URL("./runtime/ort-wasm-simd-threaded.wasm", import.meta.url) };
ort.env.logLevel = "error";

/** Load the bundle in a folder; returns {manifest, sha256, form, runtime, estimate}. */
export async function loadEstimator(folder) {
  if (!globalThis.crypto?.subtle)
    throw new Error("Hashes cannot be verified on this address; open the page over https or on localhost.");
  const text = await fetchBytes(`${folder}/bundle.json`);
  const manifest = JSON.parse(new TextDecoder().decode(text));
  const form = manifest.graphs[FORM];
  const graph = await fetchBytes(`${folder}/${form.file}`);
  if ((await sha256(graph)) !== form.sha256)
    throw new Error(`${form.file} does not match its hash; copy the bundle again.`);
  const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
  return {
    manifest,
    sha256: await sha256(text),
    form,
    runtime: `onnxruntime-web ${ort.env.versions.web}`,
    estimate: (spectrum) => estimate(session, manifest, spectrum),
  };
}

/** One row, named as the columns of the catalogue; without a result the estimates are NaN. */
async function estimate(session, manifest, spectrum) {
  const { flux, error } = toSingle(spectrum.flux, spectrum.error);
  const shape = [1, manifest.grid.n];
  const begun = performance.now();
  const output = await session.run({
    flux: new ort.Tensor("float32", flux, shape),
    error: new ort.Tensor("float32", error, shape),
  });
  const milliseconds = performance.now() - begun;
  const value = (name) => output[name].data[0];
  const n_good = value("n_good");
  const orNaN = (x) => (n_good < MIN_GOOD_PIXELS ? NaN : x);
  const row = { n_good, labels: Array.from(output.labels.data), milliseconds };
  manifest.labels.forEach((label, i) => {
    row[label] = orNaN(output.labels.data[i]);
    if (label !== "log_g") row[`${label}_sigma`] = orNaN(output.label_sigma.data[i]);
  });
  for (const name of ["log_g_err", "log_g_lo", "log_g_hi"]) row[name] = orNaN(value(name));
  for (const name of ["log_g_crlb", "log_g_crlb_prior", "chi2_reduced", "latent_distance"]) row[name] = value(name);
  row.log_g_efficiency = row.log_g_crlb_prior / row.log_g_err;
  row.snr_median = medianSnr(flux, error, goodPixels(flux, error));
  return row;
}

async function fetchBytes(address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address} is not there (${response.status}); run 'npm run build' again.`);
  return new Uint8Array(await response.arrayBuffer());
}

async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
