// A bundle's files: found, downloaded with progress, checked against the manifest's SHA-256, and
// kept in the browser's Cache Storage under their content hash.

import { BundleError } from "./errors.js";
import schema from "./manifest.schema.json" with { type: "json" };
import { walk } from "./program.js";
import { violation } from "./schema.js";

/** @typedef {import("./dims.js").Dim} Dim */
/** @typedef {import("./tensor.js").DataType} DataType */
/** @typedef {import("./tensor.js").Storage} Storage */

/**
 * @typedef {object} Port
 * @property {string} name
 * @property {DataType} dtype
 * @property {Dim[]} shape
 * @property {Storage} storage
 * @property {number} buffer
 */
/** @typedef {{weight: number, bytes: number}} WeightBuffer */
/** @typedef {{slot: number, bytes: Dim}} SlotBuffer */
/** @typedef {{kernel: number, operands: number[], output: number, args: Dim[], label: string}} Step */
/** @typedef {{name: string, file: string, relaxed: boolean, threads: boolean}} Variant */
/** @typedef {{slot: number} | {scratch: true} | {dim: Dim}} Param */
/** @typedef {{code: number, bindings: [string, number][], grid: [Dim, Dim, Dim]}} Pass */
/** @typedef {{passes: Pass[], scratch: Dim[], features: string[]}} GpuKernel */
/** @typedef {{name: string, file: string, needs: string[], kernels: GpuKernel[]}} GpuVariant */
/**
 * The parts of manifest.json that are played here; pywebgpu/manifest.schema.json is the contract.
 * @typedef {object} Manifest
 * @property {number} format_version
 * @property {string} generator_version
 * @property {string} name
 * @property {string[]} symbols
 * @property {Port[]} inputs
 * @property {Port[]} outputs
 * @property {(WeightBuffer | SlotBuffer)[]} buffers
 * @property {Dim[]} slots
 * @property {{bytes: number, shards: string[]}} weights
 * @property {Step[]} steps
 * @property {import("./program.js").Program} program in which order; empty: in theirs
 * @property {{left: Dim, right: Dim, where: string}[]} checks sizes that must be equal
 * @property {{variants: Variant[], params: Param[], weights_base: number, scratch_per_thread: Dim}} wasm
 * @property {{variants: GpuVariant[]}} webgpu
 * @property {Record<string, {bytes: number, sha256: string}>} files
 * @property {Record<string, string>} metadata
 */
/**
 * @typedef {object} Progress
 * @property {string} file the file that these bytes belong to
 * @property {number} loaded bytes that have arrived, of all files
 * @property {number} total bytes of all files that are needed
 * @property {number} fileLoaded
 * @property {number} fileTotal
 */
/** @typedef {(progress: Progress) => void} OnProgress */
/** @typedef {{feature: string, reason: string}} Unavailable */

const FORMAT_VERSION = 1;
const CACHE = "pywebgpu";
const SAVE_AFTER_MS = 2500;

const REDO = "Export the model again and upload the whole folder.";

export class Bundle {
  /**
   * @param {string} url of the bundle's folder, with a trailing slash
   * @param {Manifest} manifest
   * @param {{onProgress?: OnProgress, signal?: AbortSignal}} options
   * @param {Promise<Cache | null>} cache
   * @param {Unavailable[]} unavailable
   */
  constructor(url, manifest, { onProgress, signal }, cache, unavailable) {
    this.url = url;
    this.manifest = manifest;
    this.onProgress = onProgress;
    this.signal = signal;
    this.cache = cache;
    this.unavailable = unavailable;
    /** @type {[string, Response][]} */
    this.unsaved = [];
    this.total = 0;
    this.loaded = 0;
    if (!globalThis.crypto?.subtle) {
      this.unavailable.push({
        feature: "hash check",
        reason: "the page is not a secure context: files are taken as they come. Serve over HTTPS",
      });
    }
  }

  /**
   * Fetch and check the manifest; no other file is touched yet.
   * @param {string | URL} location the bundle's folder, or its manifest.json
   * @param {{onProgress?: OnProgress, signal?: AbortSignal}} options
   */
  static async open(location, options) {
    const url = folder(location);
    const where = `${url}manifest.json`;
    /** @type {Unavailable[]} */
    const unavailable = [];
    const cache = openCache(unavailable); // meanwhile: that, too, takes a while
    // The manifest names the other files' contents, so an old copy of it must never be used.
    const manifest = await fetchJson(where, options.signal);
    if (manifest?.format_version !== FORMAT_VERSION) {
      throw new BundleError("this runtime reads another version of the format", {
        where,
        got: `format_version ${JSON.stringify(manifest?.format_version)}`,
        expected: FORMAT_VERSION,
        remedy: "Export the model with the pywebgpu that this runtime came with.",
      });
    }
    const wrong = violation(manifest, schema) ?? dangling(manifest);
    if (wrong !== null) {
      throw new BundleError(`the manifest is not well-formed: ${wrong}`, { where, remedy: REDO });
    }
    return new Bundle(url, manifest, options, cache, unavailable);
  }

  /**
   * Announce which files will be read, so that progress can be told as a part of the whole.
   * @param {string[]} names
   */
  expect(names) {
    this.loaded = 0;
    this.total = names.reduce((sum, name) => sum + this.entry(name).bytes, 0);
  }

  /** @param {string} name */
  entry(name) {
    const entry = this.manifest.files[name];
    if (entry) return entry;
    throw new BundleError("the manifest does not list this file", {
      where: this.url + name,
      remedy: REDO,
    });
  }

  /**
   * The content of a file, from the cache or the network, verified.
   * @param {string} name
   * @returns {Promise<Uint8Array<ArrayBuffer>>}
   */
  async read(name) {
    const { sha256, bytes } = this.entry(name);
    const cache = await this.cache;
    const key = new URL(`/pywebgpu-cache/${sha256}`, this.url).href;
    const hit = await cache?.match(key);
    if (hit) {
      const data = new Uint8Array(await hit.arrayBuffer());
      if (await this.intact(data, sha256)) {
        this.progress(name, bytes, bytes, bytes);
        return data;
      }
      await cache?.delete(key);
    }
    let data = await this.download(name, "default");
    if (!(await this.intact(data, sha256))) {
      // The HTTP cache may hold a file of the same name from before a new upload: ask the server.
      this.loaded -= bytes;
      data = await this.download(name, "reload");
      if (!(await this.intact(data, sha256))) {
        throw new BundleError("the content is not what was exported: its SHA-256 differs", {
          where: this.url + name,
          got: await digest(data),
          expected: sha256,
          remedy: REDO,
        });
      }
    }
    // A copy, since the caller may hand the data on to a worker.
    if (cache) this.unsaved.push([key, new Response(data)]);
    return data;
  }

  /**
   * Put what has been downloaded into the cache, but later: writing megabytes to the disk takes
   * processors away from the first answers.
   */
  save() {
    // A full disk must not fail the session.
    setTimeout(() => this.flush().catch(() => {}), SAVE_AFTER_MS);
  }

  /** Put what has been downloaded into the cache now. */
  async flush() {
    const cache = await this.cache;
    for (const [key, response] of this.unsaved.splice(0)) await cache?.put(key, response);
  }

  /** @param {string} name */
  async json(name) {
    return JSON.parse(new TextDecoder().decode(await this.read(name)));
  }

  /**
   * The weight space, shard by shard as each arrives; `take` gets its bytes and their offset.
   * @param {(data: Uint8Array<ArrayBuffer>, offset: number) => void | Promise<void>} take
   */
  async weights(take) {
    const { shards, bytes } = this.manifest.weights;
    const sizes = shards.map((name) => this.entry(name).bytes);
    const sum = sizes.reduce((a, b) => a + b, 0);
    if (sum !== bytes) {
      throw new BundleError("the shards do not add up to the weights", {
        where: `${this.url}manifest.json`,
        got: `${sum} bytes`,
        expected: `${bytes} bytes`,
        remedy: REDO,
      });
    }
    // Two at a time: one can be hashed while the next arrives, and no more than two are in memory.
    let next = 0;
    const lane = async () => {
      while (next < shards.length) {
        const i = next++;
        const offset = sizes.slice(0, i).reduce((a, b) => a + b, 0);
        await take(await this.read(shards[i]), offset);
      }
    };
    await Promise.all([lane(), lane()]);
  }

  /**
   * @param {string} name
   * @param {RequestCache} mode
   */
  async download(name, mode) {
    const where = this.url + name;
    const { bytes } = this.entry(name);
    const response = await get(where, mode, this.signal, REDO);
    const data = new Uint8Array(bytes);
    let got = 0;
    try {
      const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        if (got + value.length > bytes) {
          await reader.cancel();
          got += value.length;
          break;
        }
        data.set(value, got);
        got += value.length;
        this.progress(name, value.length, got, bytes);
      }
    } catch (error) {
      this.signal?.throwIfAborted();
      throw new BundleError("the download broke off", {
        where,
        got: `${got} bytes`,
        expected: `${bytes} bytes`,
        remedy: "Check the connection and try again.",
        cause: error,
      });
    }
    if (got !== bytes) {
      throw new BundleError("the file's size is not what was exported", {
        where,
        got: `${got > bytes ? "more than " + bytes : got} bytes`,
        expected: `${bytes} bytes`,
        remedy: REDO,
      });
    }
    return data;
  }

  /**
   * @param {string} file
   * @param {number} more
   * @param {number} fileLoaded
   * @param {number} fileTotal
   */
  progress(file, more, fileLoaded, fileTotal) {
    this.loaded += more;
    this.onProgress?.({ file, loaded: this.loaded, total: this.total, fileLoaded, fileTotal });
  }

  /**
   * @param {Uint8Array<ArrayBuffer>} data
   * @param {string} sha256
   */
  async intact(data, sha256) {
    return !globalThis.crypto?.subtle || (await digest(data)) === sha256;
  }
}

/**
 * What no schema can say: the first number or name that refers to nothing.
 * @param {Manifest} manifest
 * @returns {string | null}
 */
function dangling(manifest) {
  const { inputs, outputs, buffers, slots, weights, steps, wasm, webgpu, files } = manifest;
  /** @param {string} path @param {number} number @param {any[]} list */
  const beyond = (path, number, list) =>
    number < list.length ? null : `${path}: ${number}, but there are only ${list.length}`;
  /** @param {string} path @param {string} name */
  const unlisted = (path, name) =>
    Object.hasOwn(files, name) ? null : `${path}: "${name}" is not in files`;
  const found = [
    ...inputs.map((port, i) => beyond(`/inputs/${i}/buffer`, port.buffer, buffers)),
    ...outputs.map((port, i) => beyond(`/outputs/${i}/buffer`, port.buffer, buffers)),
    ...buffers.map((b, i) => ("slot" in b ? beyond(`/buffers/${i}/slot`, b.slot, slots) : null)),
    ...wasm.params.map((p, i) => ("slot" in p ? beyond(`/wasm/params/${i}`, p.slot, slots) : null)),
    ...weights.shards.map((name, i) => unlisted(`/weights/shards/${i}`, name)),
    ...wasm.variants.map(({ file }, i) => unlisted(`/wasm/variants/${i}/file`, file)),
    ...webgpu.variants.map(({ file }, i) => unlisted(`/webgpu/variants/${i}/file`, file)),
    ...steps.flatMap(({ kernel, operands, output }, i) => [
      ...webgpu.variants.map(({ kernels }) => beyond(`/steps/${i}/kernel`, kernel, kernels)),
      ...[...operands, output].map((number) => beyond(`/steps/${i}`, number, buffers)),
    ]),
    ...walk(manifest.program).map((item) => {
      if ("steps" in item) return beyond("/program", item.steps[1] - 1, steps);
      if ("read" in item) return beyond("/program", item.read.buffer, buffers);
      const number = "loop" in item ? item.loop.going : item.branch.condition;
      return beyond("/program", number ?? 0, buffers);
    }),
  ];
  return found.find((text) => text !== null) ?? null;
}

/**
 * Download every file of a bundle into the cache, for a later session to start without a network.
 * What is there already is not asked for again.
 * @param {string | URL} location
 * @param {{onProgress?: OnProgress, signal?: AbortSignal}} [options]
 */
export async function prefetch(location, options = {}) {
  const bundle = await Bundle.open(location, options);
  const names = Object.keys(bundle.manifest.files);
  bundle.expect(names);
  for (const name of names) {
    await bundle.read(name);
    await bundle.flush();
  }
}

/** Forget every file that bundles of this origin have left in Cache Storage. */
export async function clearCache() {
  return "caches" in globalThis && caches.delete(CACHE);
}

/** @param {string | URL} location */
function folder(location) {
  const base = globalThis.document?.baseURI ?? globalThis.location.href;
  const url = new URL(location, base);
  url.hash = url.search = "";
  if (url.pathname.endsWith("/manifest.json")) return new URL(".", url).href;
  return url.href.endsWith("/") ? url.href : `${url.href}/`;
}

/**
 * @param {Unavailable[]} unavailable
 * @returns {Promise<Cache | null>}
 */
async function openCache(unavailable) {
  try {
    return await caches.open(CACHE);
  } catch (error) {
    const reason = "caches" in globalThis ? String(error) : "the page is not a secure context";
    unavailable.push({ feature: "cache", reason });
    return null;
  }
}

/** @param {Uint8Array<ArrayBuffer>} data */
async function digest(data) {
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  return Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * @param {string} where
 * @param {RequestCache} cache
 * @param {AbortSignal | undefined} signal
 * @param {string} remedy
 */
async function get(where, cache, signal, remedy) {
  let response;
  try {
    response = await fetch(where, { cache, signal });
  } catch (error) {
    signal?.throwIfAborted();
    throw new BundleError("the file could not be fetched", {
      where,
      got: error,
      remedy: "Check the connection, the URL and the server's CORS headers.",
      cause: error,
    });
  }
  if (response.ok) return response;
  throw new BundleError("the server does not give the file", {
    where,
    got: `HTTP status ${response.status}`,
    expected: "200",
    remedy,
  });
}

/**
 * @param {string} where
 * @param {AbortSignal | undefined} signal
 */
async function fetchJson(where, signal) {
  const remedy = "Check the URL of the bundle.";
  const response = await get(where, "no-cache", signal, remedy);
  try {
    return await response.json();
  } catch (error) {
    signal?.throwIfAborted();
    // Hosts of single-page apps answer with their home page where a file is missing.
    throw new BundleError("the file is not JSON", { where, got: error, remedy, cause: error });
  }
}
