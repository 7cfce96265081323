// Python for a page: starts the worker beside this file and passes code, values and errors.
//
//   const python = await PythonRuntime.create();
//   const answer = await python.run(`
//     import pywebgpu
//     session = await pywebgpu.InferenceSession.create(url)
//     outputs = await session.run_async({"x": values})
//     outputs["y"].tolist()`, { url, values });

import { BundleError, PywebgpuError } from "../errors.js";

/** Python code raised. `traceback` is Python's text, `type` the name of its exception class. */
export class PythonError extends PywebgpuError {
  /**
   * @param {string} type
   * @param {string} traceback
   */
  constructor(type, traceback) {
    super(traceback.trim().split("\n").at(-1) ?? type, { where: "Python" });
    this.type = type;
    this.traceback = traceback;
  }
}

/**
 * @typedef {object} Options
 * @property {string | URL} [indexURL] the folder of Pyodide; by default as runtime.json here says
 * @property {string | URL} [archive] pywebgpu-py.zip; by default as runtime.json here says
 * @property {(text: string, stream: "stdout" | "stderr") => void} [onOutput] what Python prints
 * @property {(value: any) => void} [onMessage] what Python code passes to `page.post`
 * @property {AbortSignal} [signal] ends Python, also while it loads
 */

export class PythonRuntime {
  #worker;
  #next = 0;
  /** @type {Map<number, {resolve: (value: any) => void, reject: (error: Error) => void}>} */
  #waiting = new Map();
  /** Why there is no Python any more. @type {PywebgpuError | null} */
  #closed = null;

  /** Not for callers: see `create`. @param {Options} options */
  constructor({ onOutput, onMessage }) {
    this.#worker = new Worker(new URL("./worker.js", import.meta.url), {
      type: "module",
      name: "pywebgpu Python",
    });
    this.#worker.onerror = (event) => {
      this.#close(`the worker failed: ${event.message || "its script could not be loaded"}`);
    };
    this.#worker.onmessage = ({ data }) => {
      if (data.stream) return onOutput?.(data.text, data.stream);
      if ("post" in data) return onMessage?.(data.post);
      const call = this.#waiting.get(data.id);
      this.#waiting.delete(data.id);
      if (!data.error) call?.resolve(data.value);
      else call?.reject(toError(data.error));
    };
  }

  /**
   * Load Python; takes some seconds.
   * @param {Options} [options]
   */
  static async create(options = {}) {
    const place = new URL("./runtime.json", import.meta.url);
    /** @type {{indexURL: string, archive: string, snapshot: string | null}} */
    const defaults =
      options.indexURL && options.archive
        ? { indexURL: "", archive: "", snapshot: null }
        : await describe(place);
    // The snapshot is of one Pyodide with one archive.
    const ours = !options.indexURL && !options.archive && defaults.snapshot;
    const at = (/** @type {string | URL | undefined} */ given, /** @type {string} */ otherwise) =>
      (given ? new URL(given, document.baseURI) : new URL(otherwise, place)).href;
    const python = new PythonRuntime(options);
    const { signal } = options;
    if (signal?.aborted) python.terminate();
    signal?.addEventListener("abort", () => python.terminate(), { once: true });
    try {
      /** Pyodide's version. */
      python.version = await python.#call("start", {
        indexURL: at(options.indexURL, defaults.indexURL),
        archive: at(options.archive, defaults.archive),
        snapshot: ours ? at(undefined, ours) : null,
        base: document.baseURI,
      });
    } catch (error) {
      python.terminate();
      throw error;
    }
    return python;
  }

  version = "";

  /**
   * Run Python code (with top-level `await`); gives the value of its last expression.
   * @param {string} code
   * @param {Record<string, unknown>} [globals] set before; arrays, plain objects, typed arrays
   * @returns {Promise<any>} lists, dicts, numbers and bytes as JavaScript has them
   */
  run(code, globals = {}) {
    return this.#call("run", { code, globals });
  }

  /**
   * Call a function of a Python module, a coroutine function too.
   * @param {string} module
   * @param {string} name
   * @param {unknown[]} args as for `run`
   * @returns {Promise<any>}
   */
  call(module, name, ...args) {
    return this.#call("call", { module, name, args });
  }

  /** End Python at once, whatever it is doing. */
  terminate() {
    this.#close("Python has been terminated");
  }

  /**
   * @param {string} command
   * @param {object} message
   * @returns {Promise<any>}
   */
  #call(command, message) {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      if (this.#closed) throw this.#closed;
      this.#worker.postMessage({ id, command, ...message });
      this.#waiting.set(id, { resolve, reject });
    });
  }

  /** @param {string} why */
  #close(why) {
    this.#worker.terminate();
    this.#closed ??= new PywebgpuError(why, { where: "Python", remedy: "Start it again." });
    for (const { reject } of this.#waiting.values()) reject(this.#closed);
    this.#waiting.clear();
  }
}

/** Where the site has Pyodide and the archive. @param {URL} place of its runtime.json */
async function describe(place) {
  const response = await fetch(place);
  if (response.ok) return response.json();
  throw new BundleError("the site has no Python", {
    where: place.href,
    got: `HTTP status ${response.status}`,
    remedy: "Build the site with Pyodide: `pywebgpu site --pyodide local`.",
  });
}

/** @param {{type: string, traceback?: string, message?: string}} error */
function toError({ type, traceback, message }) {
  if (traceback !== undefined) return new PythonError(type, traceback);
  return new PywebgpuError("Python could not be started", {
    where: "Python",
    got: message,
    remedy: "Check that Pyodide's files and the archive are where the page looks for them.",
  });
}
