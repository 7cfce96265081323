// Measures wasm kernels in memory of its own, where a wrong one harms nothing.

import { block, difference } from "./values.js";

/** @typedef {import("./values.js").Extent} Extent */
/**
 * @typedef {object} LoadRequest
 * @property {Extent[]} operands
 * @property {Extent} output
 * @property {number[]} args
 * @property {number} tolerance
 */
/** @typedef {[number, number]} Sample a candidate's number, and how often it is run */
/** @typedef {{run: (thread: number, threads: number) => void, memory: WebAssembly.Memory}} Whole */
/** @typedef {(count: number, thread: number, threads: number) => void} Repeat */

const PAGE = 65536;
const FIRST = 4096;
const ALIGN = 64;
const SLACK = 64; // codegen/wasm/abi.py, READ_SLACK

/** @param {number} bytes */
const padded = (bytes) => Math.ceil((bytes + SLACK) / ALIGN) * ALIGN;

export class WasmBench {
  /** @type {WebAssembly.Memory} */
  #memory = new WebAssembly.Memory({ initial: 1 });
  /** @type {Map<number, Repeat>} */
  #made = new Map();
  /** @type {number[]} */
  #addresses = [];
  #scratch = 0;
  /** @type {LoadRequest} */
  #job = { operands: [], output: ["f32", 0], args: [], tolerance: 0 };
  /** @type {ArrayBuffer | null} */
  #want = null;
  #part = 0;
  #parts = 1;

  async open() {}

  /** @param {LoadRequest} job */
  load(job) {
    this.#job = job;
    this.#made.clear();
    this.#want = null;
    this.#addresses = [];
    let end = FIRST;
    for (const [, bytes] of [...job.operands, job.output]) {
      this.#addresses.push(end);
      end += padded(bytes);
    }
    this.#scratch = end;
    this.#memory = new WebAssembly.Memory({ initial: Math.ceil((end + SLACK) / PAGE) });
    job.operands.forEach(([storage, bytes], i) => {
      const target = new Uint8Array(this.#memory.buffer, this.#addresses[i], bytes);
      const values = block(storage);
      for (let at = 0; at < bytes; at += values.length) {
        target.set(values.subarray(0, Math.min(values.length, bytes - at)), at);
      }
    });
  }

  /**
   * Compile a candidate; its first run is to come, in so many parts.
   * @param {{number: number, code: {wasm: Uint8Array<ArrayBuffer>, scratch: number}, parts: number}} request
   */
  async make({ number, code, parts }) {
    const missing = this.#scratch + parts * code.scratch + SLACK - this.#memory.buffer.byteLength;
    if (missing > 0) this.#memory.grow(Math.ceil(missing / PAGE));
    const { instance } = await WebAssembly.instantiate(code.wasm, { env: { memory: this.#memory } });
    const repeat = /** @type {any} */ (instance.exports.repeat);
    const passed = [...this.#addresses, this.#scratch, ...this.#job.args];
    this.#made.set(number, (count, thread, threads) => repeat(count, thread, threads, ...passed));
    this.#output().fill(0x3f); // what is not written shows
    [this.#part, this.#parts] = [0, parts];
  }

  /**
   * Go on with the first run for some milliseconds. True when it is done.
   * @param {{number: number, ms: number}} request
   */
  run({ number, ms }) {
    const repeat = /** @type {Repeat} */ (this.#made.get(number));
    const end = performance.now() + ms;
    do repeat(1, this.#part++, this.#parts);
    while (this.#part < this.#parts && performance.now() < end);
    return this.#part >= this.#parts;
  }

  /** What is wrong with the candidate's output. @param {{number: number}} request */
  verify({ number }) {
    const got = this.#output().slice().buffer;
    if (number === 0) this.#want = got;
    else if (this.#want) {
      return difference(got, this.#want, this.#job.output[0], this.#job.tolerance);
    }
    return null;
  }

  /**
   * Milliseconds of each sample's runs of one part.
   * @param {{samples: Sample[], parts: number}} request
   */
  time({ samples, parts }) {
    return samples.map(([number, count]) => {
      const repeat = /** @type {Repeat} */ (this.#made.get(number));
      const start = performance.now();
      repeat(count, 0, parts);
      return performance.now() - start;
    });
  }

  #output() {
    return new Uint8Array(
      this.#memory.buffer,
      /** @type {number} */ (this.#addresses.at(-1)),
      this.#job.output[1],
    );
  }

  /** @type {Record<string, (...args: number[]) => void>} */
  #clocks = {};

  /**
   * The micro-benchmarks' module (codegen/wasm/profile.py).
   * @param {{wasm: Uint8Array<ArrayBuffer>, pages: number}} request
   */
  async clocks({ wasm, pages }) {
    const memory = new WebAssembly.Memory({ initial: pages });
    const { instance } = await WebAssembly.instantiate(wasm, { env: { memory } });
    this.#clocks = /** @type {any} */ (instance.exports);
  }

  /**
   * Milliseconds of each of so many calls on one thread.
   * @param {{function: string, args: number[], calls: number}} request
   */
  clock({ function: name, args, calls }) {
    return Array.from({ length: calls }, () => {
      const start = performance.now();
      this.#clocks[name](0, 1, ...args);
      return performance.now() - start;
    });
  }

  /** @type {Whole | null} */
  #whole = null;

  /**
   * A whole module over memory of zeros: engines optimise code that has run for a while, and what
   * they made of it is there for all threads of the page. `module: null` frees the memory.
   * @param {{module: WebAssembly.Module | null, pages: number, shared: boolean}} request
   */
  async rehearse({ module, pages, shared }) {
    this.#whole = null;
    if (!module) return;
    const kind = shared ? { initial: pages, maximum: pages, shared } : { initial: pages };
    const memory = new WebAssembly.Memory(kind);
    const { exports } = await WebAssembly.instantiate(module, { env: { memory } });
    this.#whole = { run: /** @type {any} */ (exports.run), memory };
  }

  /**
   * One run of that module. Milliseconds.
   * @param {{at: number, params: Int32Array}} request
   */
  play({ at, params }) {
    const { run, memory } = /** @type {Whole} */ (this.#whole);
    new Int32Array(memory.buffer, at, params.length).set(params);
    const start = performance.now();
    run(0, 1);
    return performance.now() - start;
  }
}
