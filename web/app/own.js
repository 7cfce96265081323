// The page for a visitor's own model: a bundle's folder or zip is run here; for an ONNX file it says
// what to run on the desktop. Nothing is uploaded: the runtime reads the files where they are.

import { bytes, element, make, showError } from "./dom.js";
import { Explorer, isFloat } from "./explorer.js";
import { unzip } from "./unzip.js";

/** @typedef {import("./explorer.js").Port} Port */
/** Files by their paths, as they were dropped or chosen. @typedef {Map<string, Blob>} Files */

const DEFAULT_SIZE = 16;

const drop = element("drop", HTMLElement);
const given = element("given", HTMLElement);
const recipe = element("recipe", HTMLElement);
const commands = element("commands", HTMLElement);
const copied = element("copied", HTMLElement);
const model = element("model", HTMLElement);
const steps = element("steps", HTMLElement);

/** Made when there is a model for it. @type {Explorer | null} */
let explorer = null;

/** @param {Files} files */
async function take(files) {
  showError(null);
  copied.textContent = "";
  const names = [...files.keys()];
  const [first] = names;
  if (names.length === 1 && first.toLowerCase().endsWith(".zip")) {
    given.textContent = `Unpacking ${first}…`;
    return take(
      await unzip(/** @type {Blob} */ (files.get(first))).catch((error) => {
        throw new Error(`${first}: this zip cannot be read: ${error.message}.`);
      }),
    );
  }
  const manifests = names.filter((name) => /(^|\/)manifest\.json$/.test(name));
  const onnx = names.find((name) => name.toLowerCase().endsWith(".onnx"));
  steps.hidden = manifests.length > 0 || Boolean(onnx);
  recipe.hidden = manifests.length > 0 || !onnx;
  if (manifests.length === 1) return open(files, manifests[0]);
  if (manifests.length > 1) {
    throw new Error(`There are ${manifests.length} bundles in this folder. Choose the folder of one of them.`);
  }
  if (onnx) return explain(onnx, /** @type {Blob} */ (files.get(onnx)));
  throw new Error(
    `No bundle: there is no manifest.json in ${names.length === 1 ? first : `these ${names.length} files`}. ` +
      "Take the whole folder that `pywebgpu export` wrote, a zip of it, or an ONNX file.",
  );
}

/**
 * @param {Files} files
 * @param {string} manifest its path
 */
async function open(files, manifest) {
  const folder = manifest.slice(0, -"manifest.json".length);
  const inside = [...files].filter(([path]) => path.startsWith(folder));
  const bundle = new Map(inside.map(([path, file]) => [path.slice(folder.length), file]));
  const size = [...bundle.values()].reduce((sum, file) => sum + file.size, 0);
  given.textContent = `${folder.split("/").at(-2) ?? "Bundle"}: ${bundle.size} files, ${bytes(size)}`;
  model.hidden = false;
  explorer ??= new Explorer((inputs, outputs) => describe(inputs, outputs));
  await explorer.runner.start(bundle);
  model.hidden = explorer.runner.session === null;
}

/**
 * The tables and the form, as pages/ports.html.j2 writes them for the site's own models.
 * @param {Port[]} inputs
 * @param {Port[]} outputs
 */
function describe(inputs, outputs) {
  for (const [id, ports] of /** @type {[string, Port[]][]} */ ([["inputs", inputs], ["outputs", outputs]])) {
    const rows = ports.map(({ name, type, shape }) => {
      const cells = [make("code", {}, name), type, shape.join(" × ") || "scalar"];
      return make("tr", {}, ...cells.map((content) => make("td", {}, content)));
    });
    element(id, HTMLElement).replaceChildren(...rows);
  }
  const number = (/** @type {string} */ name, /** @type {number} */ value, /** @type {number} */ least) => {
    const limits = { min: String(least), max: "1000000", required: "" };
    return make("input", { type: "number", name, value: String(value), ...limits });
  };
  const open = new Set(inputs.flatMap(({ shape }) => shape.filter((d) => typeof d === "string")));
  const sizes = [...open].map((name) =>
    make("label", {}, name, number(`dim-${name}`, name === "batch" ? 1 : DEFAULT_SIZE, 1)),
  );
  element("dims", HTMLElement).replaceChildren(...sizes);
  const feeds = inputs.map(({ name, type }) => {
    const placeholder = `random, or ${isFloat(type) ? "0.5, 2, −1" : "1, 2, 3"}`;
    const attributes = { name: `values-${name}`, rows: "1", spellcheck: "false", placeholder };
    const field = make("div", { class: "feed" }, make("label", {}, name, make("textarea", attributes)));
    // Integers are often ids: one above a table's last row would be out of range.
    if (!isFloat(type)) field.append(make("label", {}, "random up to", number(`top-${name}`, 1, 0)));
    return field;
  });
  element("feeds", HTMLElement).replaceChildren(...feeds);
  element("result", HTMLElement).replaceChildren();
}

/**
 * The compiler needs packages that no browser has: say what does it on the desktop.
 * @param {string} path
 * @param {Blob} file
 */
function explain(path, file) {
  const name = path.split("/").at(-1) ?? path;
  const stem = name.replace(/\.onnx$/i, "").replace(/[^\w.-]+/g, "-") || "model";
  const quoted = /^[\w.-]+$/.test(name) ? name : `'${name.replaceAll("'", "'\\''")}'`;
  given.textContent = `${name}: an ONNX file, ${bytes(file.size)}`;
  element("recipe-name", HTMLElement).textContent = name;
  commands.textContent = `pywebgpu check ${quoted}\npywebgpu export ${quoted} -o ${stem}`;
  element("recipe-folder", HTMLElement).textContent = stem;
  recipe.focus();
}

/** What a drop holds, folders with all that is in them. @param {DataTransfer} transfer */
async function dropped(transfer) {
  /** @type {Files} */
  const files = new Map();
  /** @param {any} entry a FileSystemEntry */
  const walk = async (entry) => {
    const path = entry.fullPath.replace(/^\//, "");
    if (entry.isFile) {
      files.set(path, await new Promise((resolve, reject) => entry.file(resolve, reject)));
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      // A reader gives some entries at a time, and none at the end.
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!some.length) return;
      for (const child of some) await walk(child);
    }
  };
  // The list is empty as soon as the event is over: all entries at once, then what they hold.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.());
  const plain = [...transfer.files];
  for (const entry of entries) if (entry) await walk(entry);
  if (!files.size) for (const file of plain) files.set(file.name, file);
  return files;
}

for (const id of ["file", "folder"]) {
  const input = element(id, HTMLInputElement);
  input.addEventListener("change", () => {
    const files = [...(input.files ?? [])];
    if (files.length) take(new Map(files.map((f) => [f.webkitRelativePath || f.name, f]))).catch(fail);
    input.value = "";
  });
}

for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    const { dataTransfer } = /** @type {DragEvent} */ (event);
    if (!dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    drop.classList.toggle("over", name === "dragover");
    if (name === "drop") dropped(dataTransfer).then(take).catch(fail);
  });
}

/** @param {unknown} error */
function fail(error) {
  given.textContent = "";
  showError(error);
}

element("copy", HTMLButtonElement).addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(commands.textContent ?? "");
    copied.textContent = "Copied";
  } catch {
    // Pages without HTTPS have no clipboard.
    getSelection()?.selectAllChildren(commands);
    copied.textContent = "Selected: copy it with Ctrl + C";
  }
});
