// Runs in Node when a site is built, not in pages: starts Pyodide once, imports what a tuning needs,
// and writes Python's memory, so that pages need not start Python but load it started.
//
//   node snapshot.mjs PYODIDE_FOLDER ARCHIVE.zip OUT.gz

import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { argv } from "node:process";
import { pathToFileURL } from "node:url";
import { gzipSync } from "node:zlib";

const [folder, archive, out] = argv.slice(2).map((name) => path.resolve(name));
const { loadPyodide } = await import(pathToFileURL(path.join(folder, "pyodide.mjs")).href);
const python = await loadPyodide({
  indexURL: folder + path.sep,
  env: { HOME: "/home/pyodide", PYTHONHASHSEED: "0" },
  _makeSnapshot: true,
});
// As worker.js does it.
const place = "/pywebgpu-py.zip";
python.FS.writeFile(place, new Uint8Array(readFileSync(archive)));
python.runPython(`
import sys
sys.path.insert(0, ${JSON.stringify(place)})
import pywebgpu.executors.browser
import pywebgpu.tune_page
pywebgpu.tune_page.prepare()
import gc
gc.collect()
`);
writeFileSync(out, gzipSync(python.makeMemorySnapshot(), { level: 9 }));
