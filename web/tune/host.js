// The page's side of the measuring worker: what it does in each turn, how long that may take, and a
// new worker when a candidate took the old one with it.

import { DeviceError } from "../errors.js";
import { Cancelled } from "./turns.js";

/** @typedef {import("./wasm-bench.js").LoadRequest} LoadRequest */
/** @typedef {import("./wasm-bench.js").Sample} Sample */
/** @typedef {import("./turns.js").Turns} Turns */

const SLICE_MS = 8; // of a first run, and of a large kernel
const PARTS = 16; // of a first run: nothing is known of it yet
const SETTLED_MS = 5; // engines have optimised a kernel after about so long
const MOST_SAMPLES = 30;
const MOST_REPEATS = 1 << 16;
const INTERRUPTIONS = 10;
const PATIENCE_MS = { wasm: 5_000, webgpu: 60_000 }; // shaders can take seconds to compile
const RESTARTS = 20;

/** Why a candidate cannot be used. */
export class CandidateError extends Error {}

export class Bench {
  /** @type {Worker | null} */
  #worker = null;
  #next = 0;
  /** @type {{id: number, resolve: (value: any) => void, reject: (error: Error) => void} | null} */
  #waiting = null;
  #restarts = 0;
  #opened = false;
  /** @type {LoadRequest & {limit: number}} */
  #job = { operands: [], output: ["f32", 0], args: [], tolerance: 0, limit: 2 };
  /** Candidates that were made and agree with the default. @type {Map<number, any>} */
  #made = new Map();
  /** How often a sample runs a candidate. @type {Map<number, number>} */
  #counts = new Map();
  /** A sample runs one part of so many. */
  #parts = 1;
  #limitMs = 0;
  /** For all but running candidates. */
  #patience;

  /**
   * @param {{provider: string, features?: string[], limits?: Record<string, number>}} opening
   * @param {Turns} turns
   */
  constructor(opening, turns) {
    this.opening = opening;
    this.turns = turns;
    this.isWasm = opening.provider === "wasm";
    this.#patience = PATIENCE_MS[this.isWasm ? "wasm" : "webgpu"];
    // The clock is coarse on a page that is not isolated, and so are GPUs' timestamps.
    this.sampleMs = this.isWasm && globalThis.crossOriginIsolated ? 1 : 3;
  }

  /**
   * Ask the worker. A worker that does not answer in time, or fails, is replaced.
   * @param {string} command
   * @param {object} message
   * @param {number} limitMs
   * @returns {Promise<any>}
   */
  async #ask(command, message, limitMs) {
    if (!this.#worker) await this.#start();
    const worker = /** @type {Worker} */ (this.#worker);
    const id = this.#next++;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let timer;
    const answer = new Promise((resolve, reject) => {
      this.#waiting = { id, resolve, reject };
      const late = `takes longer than ${+(limitMs / 1000).toPrecision(3)} s`;
      timer = setTimeout(() => this.#end(new CandidateError(late)), limitMs);
    });
    worker.postMessage({ id, command, ...message });
    try {
      return await answer;
    } finally {
      clearTimeout(timer);
    }
  }

  /**
   * `#ask` when it is the tuning's turn.
   * @param {string} command
   * @param {object} message
   * @param {number} limitMs
   */
  #inTurn(command, message, limitMs) {
    return this.turns.take(command, () => this.#ask(command, message, limitMs));
  }

  async #start() {
    const url = new URL("./worker.js", import.meta.url);
    const worker = new Worker(url, { type: "module", name: "pywebgpu tuning" });
    worker.onerror = (event) => {
      event.preventDefault();
      this.#end(new CandidateError(`ended its worker: ${event.message || "no message"}`));
    };
    worker.onmessage = ({ data }) => {
      if (worker !== this.#worker) return;
      if (data.lost) return this.#end(new CandidateError("the GPU device was lost"));
      const waiting = this.#waiting;
      if (!waiting || waiting.id !== data.id) return;
      this.#waiting = null;
      if (data.error === undefined) waiting.resolve(data.value);
      else waiting.reject(new CandidateError(data.error));
    };
    this.#worker = worker;
    try {
      await this.#ask("open", this.opening, this.#patience);
    } catch (error) {
      this.#end(new CandidateError("its worker could not be opened"));
      if (this.#opened) throw error; // the next request tries again
      throw new DeviceError("kernels cannot be measured here", {
        where: "tune",
        got: error instanceof Error ? error.message : error,
        remedy: "The model runs as it is; it can be tuned in another browser.",
        cause: error,
      });
    }
    this.#opened = true;
  }

  /** Give the worker up; the next request starts another. @param {Error} error */
  #end(error) {
    this.#worker?.terminate();
    this.#worker = null;
    const waiting = this.#waiting;
    this.#waiting = null;
    waiting?.reject(error);
  }

  /** After a worker was lost: what the lost one had. */
  async #restore() {
    if (this.#worker || !this.#opened) return;
    if (++this.#restarts > RESTARTS) throw new Error("the measuring worker fails again and again");
    await this.#ask("load", this.#job, this.#patience);
    for (const [number, code] of [...this.#made]) await this.#try(number, code);
  }

  /** @param {LoadRequest & {limit: number}} job */
  async load(job) {
    this.#job = job;
    this.#made.clear();
    this.#counts.clear();
    this.#parts = 1;
    this.#limitMs = this.#patience;
    await this.#inTurn("load", job, this.#patience);
  }

  /**
   * Compile candidates that are to be made next, side by side.
   * @param {[number, any][]} codes
   */
  async compile(codes) {
    await this.#restore();
    await this.#inTurn("compile", { codes }, this.#patience);
  }

  /**
   * Compile a candidate, run it once and compare with number 0's output.
   * @param {number} number
   * @param {any} code
   */
  async make(number, code) {
    await this.#restore();
    this.#made.delete(number);
    await this.#try(number, code);
    this.#made.set(number, code);
  }

  /**
   * @param {number} number
   * @param {any} code
   */
  async #try(number, code) {
    await this.#inTurn("make", { number, code, parts: PARTS }, this.#patience);
    let spent = 0;
    for (let done = false; !done; ) {
      done = await this.turns.take("run", async () => {
        const start = performance.now();
        const message = { number, ms: SLICE_MS };
        const ended = await this.#ask("run", message, this.#limitMs - spent);
        spent += performance.now() - start;
        return ended;
      });
    }
    if (number === 0) this.#limitMs = Math.max(1000 * this.#job.limit, 20 * spent);
    const problem = await this.#inTurn("verify", { number }, this.#patience);
    if (problem) throw new CandidateError(problem);
  }

  /**
   * Milliseconds per run for each.
   * @param {number[]} numbers
   */
  async measure(numbers) {
    await this.#restore();
    /** @type {Sample[]} */
    const samples = [];
    for (const number of numbers) {
      samples.push([number, this.#counts.get(number) ?? (await this.#calibrate(number))]);
    }
    const found = await this.#undisturbed(samples);
    return found.map((ms, i) => (ms / samples[i][1]) * this.#parts);
  }

  /** @param {Sample} one */
  async #sample(...one) {
    return (await this.#undisturbed([one]))[0];
  }

  /**
   * Milliseconds of each sample, one after the other, that no run of the page has disturbed.
   * @param {Sample[]} samples
   * @returns {Promise<number[]>}
   */
  async #undisturbed(samples) {
    const message = { samples, parts: this.#parts };
    for (let attempt = 0; ; attempt++) {
      let epoch = 0;
      const ms = await this.turns.take("time", () => {
        epoch = this.turns.epoch;
        return this.#ask("time", message, this.#limitMs);
      });
      if (epoch === this.turns.epoch || attempt >= INTERRUPTIONS) return ms;
    }
  }

  /**
   * How many runs fill a sample; those that find out let the engine optimise the code. The
   * default also tells in how many parts the kernel is to be measured.
   * @param {number} number
   */
  async #calibrate(number) {
    if (number === 0 && this.isWasm) {
      this.#parts = PARTS;
      let least = Infinity;
      for (let i = 0; i < 6; i++) least = Math.min(least, await this.#sample(0, 1));
      this.#parts = Math.max(1, Math.ceil((least * PARTS) / SLICE_MS));
    }
    // Others are expected to be within 16 times of the default.
    let [count, spent] = [Math.max(1, (this.#counts.get(0) ?? 1) >> 4), 0];
    for (; count < MOST_REPEATS; ) {
      // Twice: one interruption must not make a short kernel look long.
      const took = [await this.#sample(number, count), await this.#sample(number, count)];
      spent += took[0] + took[1];
      const ms = Math.min(...took);
      if (ms >= this.sampleMs) break;
      const wanted = Math.floor((count * 1.2 * this.sampleMs) / Math.max(ms, 1e-3));
      count = Math.max(2 * count, Math.min(16 * count, wanted));
    }
    if (this.isWasm) count = await this.#settle(number, count, spent);
    this.#counts.set(number, count);
    return count;
  }

  /**
   * Go on until the time falls no more. Code that became quicker fills its sample with more runs.
   * @param {number} number
   * @param {number} count
   * @param {number} spent
   */
  async #settle(number, count, spent) {
    let least = Infinity;
    for (let i = 0; i < MOST_SAMPLES; i++) {
      const ms = await this.#sample(number, count);
      spent += ms;
      if (spent > SETTLED_MS && ms > 0.9 * least) break;
      least = Math.min(least, ms);
    }
    return Math.max(count, Math.ceil((count * this.sampleMs) / Math.max(least, 1e-3)));
  }

  /** The micro-benchmarks' module. @param {{wasm: Uint8Array, pages: number}} request */
  async clocks(request) {
    await this.#ask("clocks", request, this.#patience);
  }

  /**
   * Milliseconds of each of some calls of one of them.
   * @param {{function: string, args: number[], calls: number}} request
   */
  async clock(request) {
    return this.#inTurn("clock", request, this.#patience);
  }

  /**
   * Run a whole module on zeros until the engine has optimised it.
   * @param {{module: WebAssembly.Module, pages: number, shared: boolean}} whole
   * @param {{at: number, params: Int32Array}[]} frames
   */
  async rehearse(whole, frames) {
    await this.#restore();
    await this.#ask("rehearse", whole, this.#patience);
    for (const frame of frames) {
      let [least, spent] = [Infinity, 0];
      for (let i = 0; i < MOST_SAMPLES; i++) {
        const ms = await this.#inTurn("play", frame, this.#patience);
        spent += ms;
        if (spent > SETTLED_MS && i > 5 && ms > 0.9 * least) break;
        least = Math.min(least, ms);
      }
    }
    await this.#ask("rehearse", { module: null }, this.#patience);
  }

  close() {
    this.#end(new Cancelled("closed"));
  }
}
