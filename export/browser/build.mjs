// Gather the page, its runtime and a bundle in site/, a folder that any static server can serve.

import { cp, mkdir, readFile, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const HERE = dirname(fileURLToPath(import.meta.url));
const BUNDLE = join(HERE, "../../specvit_deploy/bundles/pfs-mr");
const FONTS = {
  inter: ["inter-latin-wght-normal", "inter-greek-wght-normal"],
  "source-serif-4": ["source-serif-4-latin-opsz-normal"],
};
export const SITE = join(HERE, "site");

/** Make site/ anew for the bundle in a folder. */
export async function build(bundle = BUNDLE) {
  const modules = join(HERE, "node_modules");
  const manifest = JSON.parse(await readFile(join(bundle, "bundle.json"), "utf8"));
  const graph = manifest.graphs.fp32.file;
  await rm(SITE, { recursive: true, force: true });
  await cp(join(HERE, "page"), SITE, { recursive: true });
  for (const folder of ["runtime", "fonts", dirname(join("bundle", graph))])
    await mkdir(join(SITE, folder), { recursive: true });
  for (const file of ["ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"])
    await cp(join(modules, "onnxruntime-web/dist", file), join(SITE, "runtime", file));
  for (const [family, files] of Object.entries(FONTS))
    for (const file of files)
      await cp(
        join(modules, "@fontsource-variable", family, "files", `${file}.woff2`),
        join(SITE, "fonts", `${file}.woff2`),
      );
  for (const file of ["bundle.json", graph]) await cp(join(bundle, file), join(SITE, "bundle", file));
  return SITE;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) console.log(`built ${await build(process.argv[2])}`);
