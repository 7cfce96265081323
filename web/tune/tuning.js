// A tuning of one session, the page's side: Python in a worker decides what to try next
// (pywebgpu/tune_page.py), the measuring worker tries it while the page has nothing to run, and
// winners are taken into use between two runs.

import { BundleError, InputError } from "../errors.js";
import { checkRecords, RECORDS_FORMAT, tunedKey } from "../kept.js";
import { frame, trialFrames } from "../shapes.js";
import { layout, PARAMS_BASE, WasmHost } from "../wasm.js";
import { RAISED, offers } from "../webgpu.js";
import { Bench, CandidateError } from "./host.js";
import { RecordsService } from "./service.js";
import { Cancelled, Turns } from "./turns.js";

/** @typedef {import("../bundle.js").Bundle} Bundle */
/** @typedef {import("../kept.js").Kept} Kept */
/** @typedef {import("../kept.js").Records} Records */
/** @typedef {import("../kept.js").Tuned} Tuned */
/** @typedef {import("../shapes.js").Frame} Frame */
/** @typedef {import("../webgpu.js").GpuHost} GpuHost */
/** @typedef {{call: (module: string, name: string, ...args: any[]) => Promise<any>, terminate?: () => void}} Python */

/**
 * @typedef {object} TuneOptions
 * @property {number} [budget] seconds of tuning, pauses apart (default 30)
 * @property {number} [enough] part of a run's time: it ends when less is to be expected (default 0.02)
 * @property {(progress: TuneProgress) => void} [onProgress]
 * @property {AbortSignal} [signal] cancels
 * @property {Records | string | URL} [records] what won elsewhere, by default the session's: exported
 *   records, or a service (`pywebgpu records serve`) to ask for them; it is told the model's kernels
 *   by their hashes
 * @property {boolean} [contribute] tell it what was measured here (default false)
 * @property {Python} [python] a PythonRuntime to use; by default one is started, and ended after
 */
/**
 * @typedef {object} TuneProgress
 * @property {"python" | "profile" | "search" | "swap" | "done"} stage
 * @property {string} label for people: the kernel in hand
 * @property {number} done of the stage
 * @property {number} total
 * @property {number} seconds of tuning so far
 */
/**
 * One kernel. Times in milliseconds, of all its calls in a run apart.
 * @typedef {object} KernelRow
 * @property {string} kernel
 * @property {string} label
 * @property {number} calls
 * @property {number} share of a run by default, 0 to 1
 * @property {number} default_ms
 * @property {number} best_ms
 * @property {number} candidates
 * @property {number} failed
 * @property {Record<string, any>} knobs
 * @property {Record<string, any>} default_knobs
 * @property {number} gain
 * @property {boolean} searched
 * @property {number | null} flops of one call, of a product
 * @property {number} bytes that one call reads and writes
 */
/**
 * @typedef {object} TuneReport
 * @property {string} device
 * @property {Record<string, any> | null} caps what the device can do, measured
 * @property {number} seconds
 * @property {number} candidates
 * @property {string} stopped why it ended
 * @property {number} defaultMs all kernels of a run
 * @property {number} bestMs
 * @property {KernelRow[]} rows
 * @property {Swap[]} swaps
 */
/** @typedef {{seconds: number, kernels: number, ms: number}} Swap winners in use since, how many; what the swap itself took */
/** @typedef {{ms?: number | number[], records?: string, error?: string}} Answer to a request of Python's */
/** @typedef {{bundle: Bundle, kept: Kept, host: () => WasmHost | GpuHost, frame: () => Frame | null}} Seat */

const BUDGET_S = 30;
const SPECS = "specs.json";
const PYTHON = "pywebgpu.tune_page";
const REHEARSAL_MS = 30; // a frame that one thread plays in less is rehearsed as it is

export class Tuning {
  /** @type {"loading" | "running" | "paused" | "done" | "cancelled" | "failed"} */
  state = "loading";
  /** Every kernel, what takes most first; filled once the defaults are measured. @type {KernelRow[]} */
  rows = [];
  /** @type {Swap[]} */
  swaps = [];
  /** What the device can do, measured. @type {Record<string, any> | null} */
  caps = null;
  turns = new Turns();
  #seat;
  #options;
  #clock = new Clock();
  /** @type {RecordsService | null} */
  #service = null;
  /** @type {Records["records"]} */
  #given = [];
  /** @type {Bench | null} */
  #bench = null;
  /** @type {() => void} */
  #cancel = () => {};
  /** @type {Promise<never>} */
  #cancelled;

  /**
   * Not for callers: see `InferenceSession.tune`.
   * @param {Seat} seat
   * @param {TuneOptions} options
   */
  constructor(seat, options) {
    const { budget = BUDGET_S, signal } = options;
    if (!(budget > 0)) {
      throw new InputError("not a number of seconds", {
        where: "tune, budget",
        got: budget,
        expected: "> 0",
      });
    }
    this.#seat = seat;
    this.#options = options;
    const { records } = options;
    if (typeof records === "string" || records instanceof URL) {
      this.#service = new RecordsService(records);
    } else if (records) {
      checkRecords(records, "tune, records");
      this.#given = records.records;
    }
    if (options.contribute && !this.#service) {
      throw new InputError("nobody to contribute to", {
        where: "tune, contribute",
        remedy: "Name a records service with `records`.",
      });
    }
    this.#cancelled = new Promise((_, reject) => {
      this.#cancel = () => reject(new Cancelled("cancelled"));
    });
    this.#cancelled.catch(() => {});
    if (signal?.aborted) this.cancel();
    signal?.addEventListener("abort", () => this.cancel(), { once: true });
    /** The report; also of a tuning that was cancelled. Rejects when it could not go on. */
    this.finished = this.#play();
    /** Resolves when `finished` is settled, one way or the other. */
    this.ended = this.finished.then(
      () => {},
      () => {},
    );
  }

  /** Stop measuring until `resume`. */
  pause() {
    if (this.state !== "running") return;
    this.state = "paused";
    this.#clock.stop();
    this.turns.pause(true);
  }

  resume() {
    if (this.state !== "paused") return;
    this.state = "running";
    this.#clock.start();
    this.turns.pause(false);
  }

  /** End it now; what has been found stays in use and is kept. */
  cancel() {
    this.turns.cancel();
    this.#cancel();
  }

  /** @returns {Promise<TuneReport>} */
  async #play() {
    /** @type {Python | null} */
    let python = null;
    try {
      this.#bench = new Bench(this.#opening(), this.turns);
      // One after the other: each takes a processor. The first request opens the measuring worker.
      python = await this.#python();
      const report = await this.#search(python);
      this.state = "done";
      this.#say("done", "", 1, 1);
      return report;
    } catch (error) {
      this.state = error instanceof Cancelled ? "cancelled" : "failed";
      this.#say("done", "", 1, 1);
      if (error instanceof Cancelled) return this.#partial();
      throw error;
    } finally {
      this.#bench?.close();
      if (python && python !== this.#options.python) python.terminate?.();
    }
  }

  /**
   * @template T
   * @param {Promise<T>} work
   * @returns {Promise<T>}
   */
  #unlessCancelled(work) {
    return Promise.race([work, this.#cancelled]);
  }

  /** @returns {Promise<Python>} */
  async #python() {
    this.#say("python", "Loading Python", 0, 1);
    if (this.#options.python) return this.#options.python;
    const { PythonRuntime } = await import("../py/client.js").catch((cause) => {
      throw new BundleError("the site has no Python, which generates the candidates", {
        where: "py/client.js",
        got: cause,
        remedy: "Build the site with Pyodide: `pywebgpu site --pyodide local`.",
        cause,
      });
    });
    const loading = new AbortController();
    try {
      return await this.#unlessCancelled(PythonRuntime.create({ signal: loading.signal }));
    } catch (error) {
      loading.abort();
      throw error;
    }
  }

  /** @param {Python} python */
  async #search(python) {
    const setup = await this.#setup();
    const number = await this.#unlessCancelled(python.call(PYTHON, "start", setup));
    if (this.state === "loading") this.state = "running";
    this.#clock.start();
    try {
      /** @type {Answer} */
      let answer = {};
      let last = "start";
      for (;;) {
        // What Python computes depends on what it is told.
        const request = await this.turns.take(`python after ${last}`, () => {
          const now = this.#clock.seconds;
          const step = python.call(PYTHON, "step", number, { ...answer, now });
          return this.#unlessCancelled(step);
        });
        last = request.kind;
        if (request.kind === "done") return await this.#finish(request.report);
        answer = await this.#unlessCancelled(this.#carryOut(request));
        const { label, done, total } = request.progress;
        this.#say(this.rows.length ? "search" : "profile", label, done, total);
      }
    } finally {
      python.call(PYTHON, "stop", number).catch(() => {});
    }
  }

  /**
   * @param {any} request
   * @returns {Promise<Answer>}
   */
  async #carryOut(request) {
    const bench = /** @type {Bench} */ (this.#bench);
    try {
      switch (request.kind) {
        case "clocks":
          await bench.clocks(request);
          break;
        case "clock":
          return { ms: await bench.clock(request) };
        case "device":
          this.caps = request.caps;
          break;
        case "known":
          return { records: await this.#service?.winners(request.target, request.kernels) };
        case "load":
          await bench.load(request);
          break;
        case "compile":
          await bench.compile(request.codes);
          break;
        case "make":
          await bench.make(request.number, request.code);
          break;
        case "measure":
          return { ms: await bench.measure(request.numbers) };
        case "profiled":
          this.rows = request.rows.map((/** @type {KernelRow} */ row) => this.#row(row, row.knobs));
          break;
        case "searched":
          this.rows = this.rows.map((row) =>
            row.kernel === request.row.kernel
              ? { ...this.#row(request.row, row.default_knobs), searched: true }
              : row,
          );
          await this.#keep((kept) => kept.add(JSON.parse(request.records).records));
          break;
        case "swap":
          await this.#swap(request);
      }
      return {};
    } catch (error) {
      if (error instanceof CandidateError) return { error: error.message };
      throw error;
    }
  }

  /**
   * @param {KernelRow} row
   * @param {Record<string, any>} defaults
   * @returns {KernelRow}
   */
  #row(row, defaults) {
    return { ...row, default_knobs: defaults, searched: false };
  }

  /** What the model is and what it runs on, for Python. */
  async #setup() {
    const { bundle, kept } = this.#seat;
    const { generator_version, buffers, steps, program, webgpu } = bundle.manifest;
    const played = { buffers, steps, program, webgpu: { steps: webgpu.steps } };
    const host = this.#seat.host();
    const sizes = this.#frame().sizes;
    const { records } = await kept.records(); // after those given: own timings count
    return {
      manifest: JSON.stringify({ generator_version, ...played }),
      specs: new TextDecoder().decode(await bundle.read(SPECS)),
      sizes: Object.fromEntries(sizes),
      budget: this.#options.budget ?? BUDGET_S,
      ...(this.#options.enough === undefined ? {} : { enough: this.#options.enough }),
      records: JSON.stringify({
        format_version: RECORDS_FORMAT,
        records: [...this.#given, ...records],
      }),
      service: this.#service !== null,
      ...(host instanceof WasmHost
        ? { wasm: { relaxed: host.variant.includes("relaxed"), threads: host.memory !== null } }
        : { webgpu: gpuFacts(host) }),
    };
  }

  /** The sizes to tune for: those of the last run. */
  #frame() {
    const { manifest } = this.#seat.bundle;
    const found = this.#seat.frame() ?? trialFrames(manifest).at(-1);
    if (found) return found;
    if (!manifest.symbols.length) return frame(manifest, new Map());
    throw new InputError("the model has not run yet, so it is not known for which sizes to tune", {
      where: "tune",
      remedy: "Run the session once before.",
    });
  }

  #opening() {
    const host = this.#seat.host();
    if (host instanceof WasmHost) return { provider: "wasm" };
    const { features, limits } = gpuFacts(host);
    const raised = Object.fromEntries(RAISED.map((name) => [name, limits[name]]));
    return { provider: "webgpu", features, limits: raised };
  }

  /**
   * Take winners into use.
   * @param {{code: Tuned, kernels: number}} request
   */
  async #swap({ code, kernels }) {
    const { bundle } = this.#seat;
    const host = this.#seat.host();
    const key = tunedKey(bundle.manifest, host.codeFile, host.codeDevice);
    let ms;
    if (host instanceof WasmHost) {
      const module = await WebAssembly.compile(/** @type {BufferSource} */ (code.wasm));
      await this.#rehearse(host, module, code.scratchPerThread);
      const start = performance.now();
      await host.swap(module, code.scratchPerThread);
      ms = performance.now() - start;
    } else {
      await this.turns.idle();
      const start = performance.now();
      // A device that was lost meanwhile is replaced at the next run, with what is kept.
      await host.swap(code).catch((error) => {
        if (!host.lost) throw error;
      });
      ms = performance.now() - start;
      await this.turns.idle();
      // Drivers finish their work on a pipeline when it is first used.
      await host.run(this.#frame(), []).catch(() => {});
    }
    await this.#keep((kept) => kept.keep(key, code));
    this.swaps.push({ seconds: this.#clock.seconds, kernels, ms });
    this.#say("swap", "", this.swaps.length, this.swaps.length);
  }

  /**
   * @param {WasmHost} host
   * @param {WebAssembly.Module} module
   * @param {import("../dims.js").Dim} [scratchPerThread]
   */
  async #rehearse(host, module, scratchPerThread) {
    const { manifest } = this.#seat.bundle;
    const last = this.#seat.frame();
    const short = last && host.lastMs * host.threads < REHEARSAL_MS;
    const layouts = (short ? [last] : trialFrames(manifest)).map((f) =>
      layout(manifest, f, 1, scratchPerThread),
    );
    if (!layouts.length) return;
    const pages = Math.max(...layouts.map((l) => l.pages));
    const frames = layouts.map(({ params }) => ({ at: PARAMS_BASE, params }));
    await this.#bench?.rehearse({ module, pages, shared: host.memory !== null }, frames);
  }

  /**
   * A full disk takes the next visit's start, not this one's tuning.
   * @param {(kept: Kept) => Promise<void>} write
   */
  async #keep(write) {
    await write(this.#seat.kept).catch((error) => console.warn("pywebgpu: not kept:", error));
  }

  /** @param {any} report @returns {Promise<TuneReport>} */
  async #finish(report) {
    const { records: text, ...rest } = report;
    const { records } = JSON.parse(text);
    await this.#keep((kept) => kept.add(records));
    if (this.#options.contribute) await this.#service?.contribute(records);
    return { ...rest, rows: this.rows, swaps: this.swaps };
  }

  /** @returns {TuneReport} */
  #partial() {
    const sum = (/** @type {"default_ms" | "best_ms"} */ name) =>
      this.rows.reduce((total, row) => total + row[name] * row.calls, 0);
    return {
      device: "",
      caps: this.caps,
      seconds: this.#clock.seconds,
      candidates: this.rows.reduce((total, row) => total + row.candidates, 0),
      stopped: "cancelled",
      defaultMs: sum("default_ms"),
      bestMs: sum("best_ms"),
      rows: this.rows,
      swaps: this.swaps,
    };
  }

  /**
   * @param {TuneProgress["stage"]} stage
   * @param {string} label
   * @param {number} done
   * @param {number} total
   */
  #say(stage, label, done, total) {
    // A swap that was under way when the tuning was cancelled ends after it.
    if (stage !== "done" && ["cancelled", "failed"].includes(this.state)) return;
    this.#options.onProgress?.({ stage, label, done, total, seconds: this.#clock.seconds });
  }
}

/** Seconds, without those of pauses. */
class Clock {
  #before = 0;
  /** @type {number | null} */
  #since = null;

  start() {
    this.#since ??= performance.now();
  }

  stop() {
    this.#before = this.seconds;
    this.#since = null;
  }

  get seconds() {
    return this.#before + (this.#since === null ? 0 : (performance.now() - this.#since) / 1000);
  }
}

/** @param {GpuHost} host */
function gpuFacts(host) {
  const device = /** @type {GPUDevice} */ (host.gpuDevice);
  const { subgroupMinSize = 0, subgroupMaxSize = 0 } = device.adapterInfo ?? {};
  /** @type {Record<string, number>} */
  const limits = {};
  for (const name of [...RAISED, "maxComputeWorkgroupsPerDimension"]) {
    limits[name] = /** @type {any} */ (device.limits)[name];
  }
  return {
    features: [...device.features],
    offers: [...offers(device)],
    limits,
    subgroupSizes: [subgroupMinSize, subgroupMaxSize],
  };
}
