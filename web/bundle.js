// A bundle's files: found, downloaded with progress, checked against the manifest's hashes as they
// arrive, and kept in the browser's Cache Storage under them.

import { BundleError } from "./errors.js";
import schema from "./manifest.schema.json" with { type: "json" };
import { dangling } from "./references.js";
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
 * @property {[number, number]} [limits] of an input's integers
 */
/** @typedef {{weight: number, bytes: number}} WeightBuffer */
/** @typedef {{slot: number, bytes: Dim}} SlotBuffer */
/** @typedef {{kernel: number, operands: number[], output: number, kept?: number,
 *   args: Dim[], label: string}} Step */
/** @typedef {{name: string, file: string, relaxed: boolean, threads: boolean}} Variant */
/** @typedef {{slot: number} | {scratch: true} | {dim: Dim}} Param */
/** @typedef {{code: number, bindings: [string, number][], grid: [Dim, Dim, Dim]}} Pass */
/** @typedef {{passes: Pass[], scratch: Dim[], features: string[]}} GpuKernel */
/** @typedef {{name: string, file: string, needs: string[], check?: string, tests?: string,
 *   kernels: GpuKernel[]}} GpuVariant `tests`: the file of its self-tests */
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
 * @property {{steps: Step[], variants: GpuVariant[]}} webgpu
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
/**
 * What is done with a block of a file: at once, since its memory is used again.
 * @typedef {(block: Uint8Array<ArrayBuffer>, offset: number) => void} Take
 */
/** @typedef {{feature: string, reason: string}} Unavailable */
/** A bundle's files by name, where the page holds them itself. @typedef {Map<string, Blob>} Files */

const FORMAT_VERSION = 1;
const CACHE = "pywebgpu";
const SAVE_AFTER_MS = 2500;
const BLOCK = 1 << 18; // what is hashed at a time: HASH_BLOCK in pywebgpu/bundle.py
const HASH_BYTES = 32;

const REDO = "Export the model again and upload the whole folder.";

export class Bundle {
  /**
   * @param {string} url of the bundle's folder, with a trailing slash; empty where the page holds
   *   the files
   * @param {Files | null} files
   * @param {Manifest} manifest
   * @param {{onProgress?: OnProgress, signal?: AbortSignal}} options
   * @param {Promise<Cache | null>} cache
   * @param {Unavailable[]} unavailable
   */
  constructor(url, files, manifest, { onProgress, signal }, cache, unavailable) {
    this.url = url;
    this.files = files;
    this.manifest = manifest;
    this.onProgress = onProgress;
    this.signal = signal;
    this.cache = cache;
    this.unavailable = unavailable;
    /** @type {[string, () => Blob | Uint8Array<ArrayBuffer>][]} */
    this.unsaved = [];
    this.total = 0;
    this.loaded = 0;
    /** Files that progress is told of. @type {Set<string>} */
    this.expected = new Set();
    /** Bytes per file. @type {Map<string, number>} */
    this.arrived = new Map();
    if (!globalThis.crypto?.subtle) {
      this.unavailable.push({
        feature: "hash check",
        reason: "the page is not a secure context: files are taken as they come. Serve over HTTPS",
      });
    }
  }

  /**
   * Fetch and check the manifest; no other file is touched yet.
   * @param {string | URL | Files} location the bundle's folder, or its manifest.json; or its files
   * @param {{onProgress?: OnProgress, signal?: AbortSignal}} options
   */
  static async open(location, options) {
    const files = location instanceof Map ? location : null;
    const url = location instanceof Map ? "" : folder(location);
    const where = `${url}manifest.json`;
    /** @type {Unavailable[]} */
    const unavailable = [];
    // Meanwhile: that, too, takes a while. What the page holds need not be kept once more.
    const cache = files ? Promise.resolve(null) : openCache(unavailable);
    // The manifest names the other files' contents, so an old copy of it must never be used.
    const manifest = await readJson(files, where, options.signal);
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
    return new Bundle(url, files, manifest, options, cache, unavailable);
  }

  /**
   * Announce which files will be read, so that progress can be told as a part of the whole.
   * @param {string[]} names
   */
  expect(names) {
    this.loaded = 0;
    this.arrived.clear();
    this.expected = new Set(names);
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
   * The content of a file, verified.
   * @param {string} name
   * @returns {Promise<Uint8Array<ArrayBuffer>>} the bundle keeps it too: not to be changed
   */
  async read(name) {
    const data = new Uint8Array(this.entry(name).bytes);
    await this.fill(name, (block, offset) => data.set(block, offset), () => data);
    return data;
  }

  /**
   * A file, from the cache or the network, block by block as it arrives; wrong content is found
   * at the end, so the caller must not use any before this returns.
   * @param {string} name
   * @param {Take} take
   * @param {() => Uint8Array<ArrayBuffer>} [again] the content once more, for the cache; without
   *   it the bundle keeps a copy
   */
  async fill(name, take, again) {
    const { sha256 } = this.entry(name);
    const where = this.url + name;
    const cache = await this.cache;
    const key = cache ? new URL(`/pywebgpu-cache/${sha256}`, this.url).href : "";
    const hit = await cache?.match(key);
    if (hit) {
      const kept = await this.pour(hit, name, take).catch(() => "");
      this.signal?.throwIfAborted();
      if (kept === sha256) return;
      await cache?.delete(key);
    }
    // With our own cache, the browser's need not hold the bytes as well. Without, it may hold a
    // file of the same name from before a new upload: then the server is asked once more.
    let got = "";
    for (const mode of /** @type {RequestCache[]} */ (cache ? ["no-store"] : ["default", "reload"])) {
      /** @type {Uint8Array<ArrayBuffer>[]} */
      const copy = [];
      const keep = cache && !again;
      const response = await get(this.files, where, mode, this.signal, REDO);
      got = await this.pour(response, name, (block, offset) => {
        if (keep) copy.push(block.slice());
        take(block, offset);
      });
      if (got === sha256) {
        if (cache) this.unsaved.push([key, again ?? (() => new Blob(copy))]);
        return;
      }
    }
    throw new BundleError("the content is not what was exported: its SHA-256 differs", {
      where,
      got,
      expected: sha256,
      remedy: REDO,
    });
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
    for (const [key, content] of this.unsaved.splice(0)) {
      await cache?.put(key, new Response(content()));
    }
  }

  /** @param {string} name */
  async json(name) {
    return JSON.parse(new TextDecoder().decode(await this.read(name)));
  }

  /**
   * The texts that a variant's kernels name by number.
   * @param {GpuVariant} variant
   * @returns {Promise<string[]>}
   */
  async shaders({ file, kernels }) {
    const codes = await this.json(file);
    const named = kernels.flatMap(({ passes }) => passes.map(({ code }) => code));
    const missing = named.find((number) => typeof codes?.[number] !== "string");
    if (missing === undefined) return codes;
    throw new BundleError(`shader ${missing}, which a kernel names, is not in the file`, {
      where: this.url + file,
      got: Array.isArray(codes) ? `${codes.length} shaders` : typeof codes,
      remedy: REDO,
    });
  }

  /**
   * The weight space, block by block as it arrives; see `fill`.
   * @param {Take} take gets offsets into the weight space
   * @param {(offset: number, bytes: number) => Uint8Array<ArrayBuffer>} [again]
   */
  async weights(take, again) {
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
    // Two at a time: a processor has something to do while the other one's bytes are on the way.
    let next = 0;
    const lane = async () => {
      while (next < shards.length) {
        const i = next++;
        const start = sizes.slice(0, i).reduce((a, b) => a + b, 0);
        await this.fill(
          shards[i],
          (block, offset) => take(block, start + offset),
          again && (() => again(start, sizes[i])),
        );
      }
    };
    await Promise.all([lane(), lane()]);
  }

  /**
   * A response's body, block by block.
   * @param {Response} response
   * @param {string} name
   * @param {Take} take
   * @returns {Promise<string>} the hash of the content: see `content_hash` in pywebgpu/bundle.py
   */
  async pour(response, name, take) {
    const { bytes, sha256 } = this.entry(name);
    /** @type {Promise<ArrayBuffer>[]} */
    const hashes = [];
    const checked = Boolean(globalThis.crypto?.subtle);
    let got = 0;
    try {
      for await (const block of blocks(response, BLOCK)) {
        if (got + block.length <= bytes) {
          // Hashed from a copy that is made here and now: the block's memory is used again.
          if (checked) hashes.push(crypto.subtle.digest("SHA-256", block));
          take(block, got);
        }
        got += block.length;
        if (got > bytes) break;
        this.progress(name, got);
      }
    } catch (error) {
      this.signal?.throwIfAborted();
      throw new BundleError("the download broke off", {
        where: this.url + name,
        got: `${got} bytes`,
        expected: `${bytes} bytes`,
        remedy: "Check the connection and try again.",
        cause: error,
      });
    }
    if (got !== bytes) {
      throw new BundleError("the file's size is not what was exported", {
        where: this.url + name,
        got: `${got > bytes ? "more than " + bytes : got} bytes`,
        expected: `${bytes} bytes`,
        remedy: REDO,
      });
    }
    if (!checked) return sha256;
    const parts = await Promise.all(hashes);
    if (parts.length === 1) return hex(parts[0]);
    const all = new Uint8Array(parts.length * HASH_BYTES);
    parts.forEach((part, i) => all.set(new Uint8Array(part), i * HASH_BYTES));
    return hex(await crypto.subtle.digest("SHA-256", all));
  }

  /**
   * @param {string} file
   * @param {number} fileLoaded
   */
  progress(file, fileLoaded) {
    if (!this.expected.has(file)) return; // a later one, behind answers
    this.loaded += fileLoaded - (this.arrived.get(file) ?? 0);
    this.arrived.set(file, fileLoaded);
    const fileTotal = this.entry(file).bytes;
    this.onProgress?.({ file, loaded: this.loaded, total: this.total, fileLoaded, fileTotal });
  }
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

/** @param {ArrayBuffer} hash */
const hex = (hash) =>
  Array.from(new Uint8Array(hash), (byte) => byte.toString(16).padStart(2, "0")).join("");

/**
 * A response's body in blocks of `size` bytes, the last one shorter. A block is valid until the
 * next one is asked for: the browser writes them all to the same memory, where it can do that.
 * @param {Response} response
 * @param {number} size
 * @returns {AsyncGenerator<Uint8Array<ArrayBuffer>>}
 */
async function* blocks({ body }, size) {
  let block = new Uint8Array(size);
  let filled = 0;
  const reader = openBody(/** @type {ReadableStream<Uint8Array>} */ (body));
  try {
    for (let done = false; !done; ) {
      /** @type {Uint8Array<ArrayBuffer> | undefined} */
      let value;
      if (reader instanceof ReadableStreamDefaultReader) {
        ({ value, done } = /** @type {any} */ (await reader.read()));
        let rest = value ?? new Uint8Array();
        for (; filled + rest.length >= size; filled = 0) {
          block.set(rest.subarray(0, size - filled), filled);
          rest = rest.subarray(size - filled);
          yield block;
        }
        block.set(rest, filled);
        filled += rest.length;
      } else {
        // The memory goes to the browser and comes back as another buffer, filled.
        const options = { min: size - filled };
        ({ value, done } = await /** @type {any} */ (reader).read(block.subarray(filled), options));
        if (!value) return;
        block = new Uint8Array(value.buffer);
        filled += value.length;
        if (filled === size) {
          yield block;
          filled = 0;
        }
      }
    }
    if (filled) yield block.subarray(0, filled);
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Not every browser can write a body to memory of ours. @param {ReadableStream<Uint8Array>} body */
function openBody(body) {
  try {
    return body.getReader({ mode: "byob" });
  } catch {
    return body.getReader();
  }
}

/**
 * @param {Files | null} files
 * @param {string} where
 * @param {RequestCache} cache
 * @param {AbortSignal | undefined} signal
 * @param {string} remedy
 */
async function get(files, where, cache, signal, remedy) {
  if (files) {
    const file = files.get(where);
    if (file) return new Response(file);
    throw new BundleError("the file is not among those given", { where, remedy });
  }
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
 * @param {Files | null} files
 * @param {string} where
 * @param {AbortSignal | undefined} signal
 */
async function readJson(files, where, signal) {
  const remedy = files ? "Give all files that the export wrote." : "Check the URL of the bundle.";
  const response = await get(files, where, "no-cache", signal, remedy);
  try {
    return await response.json();
  } catch (error) {
    signal?.throwIfAborted();
    // Hosts of single-page apps answer with their home page where a file is missing.
    throw new BundleError("the file is not JSON", { where, got: error, remedy, cause: error });
  }
}
