// Python in a worker: Pyodide, the pywebgpu archive on its path, and this folder's runtime under it.
// It takes messages of client.js; what Python computes here never blocks the page.

import * as runtime from "../pywebgpu.js";
import { fromBytes, toBytes } from "../tensor.js";

/** @type {any} */
let pyodide;

const ARCHIVE = "/pywebgpu-py.zip"; // where Python sees it; also in snapshot.mjs

/**
 * What pywebgpu/executors/browser.py imports as `_pywebgpu_js`. Tensors cross as bytes, which is
 * the one thing that both languages copy at full speed.
 */
const bridge = {
  /**
   * @param {string} url
   * @param {import("../session.js").Options} options
   */
  create: (url, options) => attempt(() => runtime.InferenceSession.create(url, options)),
  /**
   * @param {runtime.InferenceSession} session
   * @param {[string, import("../tensor.js").DataType, Uint8Array<ArrayBuffer>, number[]][]} feeds
   */
  run: (session, feeds) =>
    attempt(async () => {
      const tensors = feeds.map(([name, type, bytes, dims]) => [name, fromBytes(type, bytes, dims)]);
      const outputs = await session.run(Object.fromEntries(tensors));
      return Object.entries(outputs).map(([name, t]) => [name, t.type, toBytes(t), [...t.dims]]);
    }),
  /**
   * @param {runtime.InferenceSession} session
   * @param {import("../tune/tuning.js").TuneOptions} options
   */
  tune: (session, options) => attempt(() => session.tune({ ...options, python: here })),
  /** @param {import("../pywebgpu.js").Tuning} tuning */
  finished: (tuning) => attempt(async () => JSON.stringify(await tuning.finished)),
};

/** For a session's tuning: the Python that runs here already. */
const here = {
  /** @param {string} module @param {string} name @param {unknown[]} args */
  call: (module, name, ...args) => call(module, name, ...args),
};

/**
 * Errors as values: Python turns the facts into its own exceptions.
 * @template T
 * @param {() => Promise<T>} work
 */
async function attempt(work) {
  try {
    return { value: await work() };
  } catch (error) {
    if (error instanceof runtime.PywebgpuError) return { error: error.toJSON() };
    throw error;
  }
}

/** @type {Record<string, (message: any) => Promise<unknown>>} */
const COMMANDS = {
  /** @param {{indexURL: string, archive: string, snapshot: string | null, base: string}} message */
  async start({ indexURL, archive, snapshot, base }) {
    const loader = import(new URL("pyodide.mjs", indexURL).href);
    const zip = fetch(archive);
    const memory = snapshot ? started(snapshot) : null;
    const { loadPyodide } = await loader;
    const say = (/** @type {string} */ stream) => (/** @type {string} */ text) =>
      postMessage({ stream, text });
    const options = { indexURL, stdout: say("stdout"), stderr: say("stderr") };
    pyodide = await load(loadPyodide, options, memory && (await memory));
    const response = await zip;
    if (!response.ok) {
      throw new runtime.BundleError("the Python archive is not there", {
        where: archive,
        got: `HTTP status ${response.status}`,
        remedy: "Build the site again and upload all of it.",
      });
    }
    pyodide.FS.writeFile(ARCHIVE, new Uint8Array(await response.arrayBuffer()));
    pyodide.registerJsModule("_pywebgpu_js", { ...bridge, base });
    pyodide.registerJsModule("page", { post: (/** @type {any} */ v) => postMessage({ post: plain(v) }) });
    pyodide.runPython(
      `import sys\nif ${JSON.stringify(ARCHIVE)} not in sys.path: sys.path.insert(0, ${JSON.stringify(ARCHIVE)})`,
    );
    return pyodide.version;
  },
  /** @param {{code: string, globals: Record<string, unknown>}} message */
  async run({ code, globals }) {
    for (const [name, value] of Object.entries(globals)) {
      pyodide.globals.set(name, pyodide.toPy(value));
    }
    return plain(await pyodide.runPythonAsync(code));
  },
  /** @param {{module: string, name: string, args: unknown[]}} message */
  async call({ module, name, args }) {
    return call(module, name, ...args);
  },
};

/**
 * Python's memory as snapshot.mjs has written it; null where it cannot be had.
 * @param {string} url
 */
async function started(url) {
  try {
    const response = await fetch(url);
    if (!response.ok || !response.body) return null;
    const bytes = response.body.pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(bytes).arrayBuffer());
  } catch {
    return null;
  }
}

/**
 * @param {(options: object) => Promise<any>} loadPyodide
 * @param {{indexURL: string}} options
 * @param {Uint8Array | null} memory
 */
async function load(loadPyodide, options, memory) {
  if (memory) {
    try {
      const { default: create } = await import(new URL("pyodide.asm.mjs", options.indexURL).href);
      // Pyodide asks for as much memory as the snapshot has, but its build always begins with 30 MiB.
      const createPyodideModule = async (/** @type {object} */ settings) => {
        const module = await create(settings);
        if (memory.length > module.HEAP8.length) module.growMemory(memory.length);
        return module;
      };
      return await loadPyodide({ ...options, createPyodideModule, _loadSnapshot: memory });
    } catch (error) {
      // It fits one build of Pyodide, and engines that lay out its function table alike.
      console.warn("pywebgpu: Python starts from nothing:", error);
    }
  }
  return loadPyodide(options);
}

/**
 * A function of a Python module; its result as data, that of a coroutine when it has ended.
 * @param {string} module
 * @param {string} name
 * @param {unknown[]} args
 */
async function call(module, name, ...args) {
  const found = pyodide.pyimport(`${module}.${name}`);
  const given = args.map((arg) => pyodide.toPy(arg));
  try {
    return plain(await found(...given));
  } finally {
    for (const value of [found, ...given]) value?.destroy?.();
  }
}

/** A Python value as data that a message can carry. @param {any} value */
function plain(value) {
  if (!pyodide || !(value instanceof pyodide.ffi.PyProxy)) return value;
  try {
    return value.toJs({ dict_converter: Object.fromEntries, create_pyproxies: false });
  } finally {
    value.destroy();
  }
}

onmessage = async ({ data: { id, command, ...message } }) => {
  try {
    postMessage({ id, value: await COMMANDS[command](message) });
  } catch (error) {
    postMessage({ id, ...failure(/** @type {any} */ (error)) });
  }
};

/** @param {any} error */
function failure(error) {
  // Pyodide gives a Python exception's traceback as the message, and its class as `type`.
  const isPython = pyodide && error instanceof pyodide.ffi.PythonError;
  return isPython
    ? { error: { type: error.type, traceback: error.message } }
    : { error: { type: error.name ?? "Error", message: error.message ?? String(error) } };
}
