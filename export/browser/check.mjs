// Drive the page with headless Chromium and compare what it shows with what Python says; exit 1 on a difference.

import { existsSync } from "node:fs";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import puppeteer from "puppeteer-core";
import { build } from "./build.mjs";
import { serve } from "./serve.mjs";

const FOLDER = join(dirname(fileURLToPath(import.meta.url)), "check");
const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";
const DEX = 1e-4;
const RELATIVE = 1e-3;
const IN_DEX = ["log_g", "log_g_err", "log_g_lo", "log_g_hi"];
const EXACT = ["n_good", "quality"];
const VIEWS = [
  ["wide-light", 1280, "light"],
  ["wide-dark", 1280, "dark"],
  ["phone-light", 390, "light"],
  ["phone-dark", 390, "dark"],
];

const failures = [];
const fail = (message) => failures.push(message) && console.error(`FAILED ${message}`);
const answers = await readAnswers();
const { server, address } = await serve(await build(process.argv[2]));
const browser = await puppeteer.launch({ executablePath: CHROMIUM, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
try {
  const page = await browser.newPage();
  page.on("pageerror", (error) => fail(`the page raised ${error.message}`));
  page.on("console", (message) => message.type() === "error" && fail(`the console says ${message.text()}`));
  await page.goto(address);
  await page.waitForSelector("body[data-bundle]", { timeout: 60_000 });
  const sha256 = await page.$eval("body", (body) => body.dataset.bundle);
  if (sha256 !== answers.bundle_sha256)
    fail("page and answers are of different bundles; run make_examples.py for this one");
  const requests = [];
  page.on("request", (request) => request.resourceType() === "font" || requests.push(request.url()));
  await compareAll(page, answers.spectra);
  await refusals(page);
  await words(page);
  if (requests.length) fail(`reading files made requests: ${requests.join(", ")}`);
  await pictures(page);
  await tampered(await browser.newPage());
} finally {
  await browser.close();
  server.close();
}
if (failures.length) console.error(`${failures.length} failures`);
process.exitCode = failures.length ? 1 : 0;

async function readAnswers() {
  const path = join(FOLDER, "answers.json");
  if (!existsSync(path)) throw new Error(`${path} is not there; run 'python export/browser/make_examples.py' first`);
  return JSON.parse(await readFile(path, "utf8"));
}

async function compareAll(page, spectra) {
  const largest = {};
  const times = [];
  for (const [name, expected] of Object.entries(spectra)) {
    const { values, milliseconds } = await estimate(page, name);
    times.push(milliseconds);
    for (const [column, truth] of Object.entries(expected)) {
      const [found, wanted] = [values[column], Number(truth === "inf" ? Infinity : truth)].map(Number);
      if (!(column in values)) fail(`${name}: the page does not show ${column}`);
      if (Object.is(found, wanted) || found === wanted) continue;
      const difference = Math.abs(found - wanted) / (IN_DEX.includes(column) ? 1 : Math.abs(wanted));
      const tolerance = EXACT.includes(column) ? 0 : IN_DEX.includes(column) ? DEX : RELATIVE;
      if (!(difference <= tolerance)) fail(`${name}: ${column} is ${found}, Python says ${wanted}`);
      largest[column] = Math.max(largest[column] ?? 0, difference);
    }
  }
  console.log(`${times.length} spectra; largest differences (log g columns in dex, others relative):`);
  console.table(largest);
  times.sort((a, b) => a - b);
  console.log(
    `${times[times.length >> 1].toFixed(0)} ms a spectrum (median; ${times[0].toFixed(0)} to ${times.at(-1).toFixed(0)})`,
  );
}

async function estimate(page, name) {
  await (await page.$("#file")).uploadFile(join(FOLDER, `${name}.csv`));
  await page.waitForSelector(`#result[data-name="${name}.csv"]:not([hidden])`, { timeout: 30_000 });
  return page.evaluate(() => ({
    values: Object.fromEntries(
      [...document.querySelectorAll("output[data-column]")].map(({ dataset }) => [dataset.column, dataset.value]),
    ),
    milliseconds: Number(document.getElementById("result").dataset.milliseconds),
  }));
}

/** Files that the page must refuse, each with a part of what it must say. */
async function refusals(page) {
  const good = (await readFile(join(FOLDER, "drawn-0.csv"), "utf8")).trimEnd().split("\n");
  const [head, body] = [good.slice(0, 2), good.slice(2)];
  const shifted = (change) => [
    ...head,
    ...body.map((line) => line.replace(/^[^,]+/, (wave) => String(change(Number(wave))))),
  ];
  const cases = {
    empty: [[], "is empty"],
    short: [good.slice(0, -1), "4,095 pixels"],
    nanometres: [shifted((wave) => wave / 10), "look like nm"],
    air: [shifted((wave) => wave / 1.000276), "look like air"],
    redshifted: [shifted((wave) => wave + 1), "rest frame"],
    reversed: [[...head, ...body.toReversed()], "reverse the rows"],
    "no-errors": [good.map((line) => line.split(",").slice(0, 2).join(",")), "no column 'error'"],
    "no-header": [body.map((line) => `${line},0`), "4 columns and no header"],
    ragged: [[...good.slice(0, 9), "7103.6,0.5"], "Line 10 has 2 columns"],
    word: [[...good.slice(0, 9), "7103.6,bright,0.1"], "'bright' is not a number"],
  };
  for (const [name, [lines, words]] of Object.entries(cases)) {
    const path = join(FOLDER, `refused-${name}.csv`);
    await writeFile(path, lines.join("\n"));
    await (await page.$("#file")).uploadFile(path);
    await page.waitForFunction(
      (start) => document.getElementById("problem").textContent.startsWith(start),
      { timeout: 10_000 },
      `refused-${name}`,
    );
    const said = await page.$eval("#problem", (problem) => (problem.hidden ? "" : problem.textContent));
    if (!said.includes(words)) fail(`refused-${name}: the page says '${said}', not '${words}'`);
    if (!(await page.$eval("#result", (result) => result.hidden)))
      fail(`refused-${name}: an old result is still shown`);
  }
  console.log(`${Object.keys(cases).length} unusable files refused`);
}

/** What the page must say where there is no estimate, and of a spectrum without noise. */
async function words(page) {
  const lines = (await readFile(join(FOLDER, "drawn-0.csv"), "utf8")).trimEnd().split("\n");
  const smooth = lines.map((line, i) => (i < 2 ? line : line.replace(/,[^,]+,/, ",1,")));
  await writeFile(join(FOLDER, "noise-free.csv"), smooth.join("\n"));
  for (const [name, selector, expected] of [
    ["noise-free", "#remarks", "model without noise"],
    ["no-data", "#status", "No estimate"],
    ["no-error", "#remarks", "errors are unusable"],
    ["negative", "#limit-words", "cannot be told apart"],
  ]) {
    await estimate(page, name);
    const said = await page.$eval(selector, (node) => node.textContent);
    if (!said.includes(expected)) fail(`${name}: the page says '${said}', not '${expected}'`);
  }
}

/** A graph with one byte changed is refused. */
async function tampered(page) {
  await page.setRequestInterception(true);
  page.on("request", async (request) => {
    if (!request.url().endsWith(".onnx")) return request.continue();
    const body = Buffer.from(await (await fetch(request.url())).arrayBuffer());
    body[body.length >> 1] ^= 1;
    request.respond({ body });
  });
  await page.goto(address);
  await page.waitForSelector("#problem:not([hidden]), body[data-bundle]", { timeout: 60_000 });
  const said = await page.$eval("#problem", (problem) => problem.textContent);
  if (!said.includes("does not match its hash")) fail(`a tampered graph is taken: '${said}'`);
}

async function pictures(page) {
  const folder = join(FOLDER, "pictures");
  await mkdir(folder, { recursive: true });
  for (const [name, width, scheme] of VIEWS) {
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
    await page.setViewport({ width, height: 900, deviceScaleFactor: width < 600 ? 2 : 1 });
    await page.click("#example");
    await page.waitForSelector('#result[data-name="Example"]:not([hidden])');
    await page.evaluate(() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn))));
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    if (overflow > 0) fail(`${name}: the page is ${overflow} pixels wider than the window`);
    await page.screenshot({ path: join(folder, `${name}.png`), fullPage: true });
  }
  console.log(`pictures in ${folder}`);
}
