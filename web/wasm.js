// The WebAssembly executor: the model's one module, played by workers so that the page's own thread
// never waits. On a cross-origin isolated page several workers share one memory, which this thread
// reads and writes directly, and in which it plays the shortest runs itself; elsewhere a single
// worker has its own, and data travel in messages.

import { align, evaluate, product } from "./dims.js";
import { DeviceError } from "./errors.js";
import { relaxedSimd, simd, threadsMissing } from "./features.js";
import { settle, walk } from "./program.js";
import { frame, outputBytes, trialFrames } from "./shapes.js";
import { memory as outputMemory } from "./tensor.js";
import { always, Ways } from "./wasm-ways.js";

/** @typedef {import("./bundle.js").Bundle} Bundle */
/** @typedef {import("./bundle.js").Manifest} Manifest */
/** @typedef {import("./bundle.js").Unavailable} Unavailable */
/** @typedef {import("./shapes.js").Frame} Frame */
/** @typedef {import("./kept.js").FindTuned} FindTuned */
/** @typedef {Float32Array | Int32Array | Uint16Array} Packed */

// codegen/wasm/abi.py, as indices of 32-bit words.
const HOST_GENERATION = 128 / 4;
const HOST_DONE = 192 / 4;
const FAULT = 252; // an address
export const PARAMS_BASE = 256;
const SLOT_ALIGN = 64;
const READ_SLACK = 64;

const PAGE = 65536;
const MAX_PAGES = 65536;
const MAX_THREADS = 8; // more threads wait for each other longer than they help; at most 15
const LOOK_MS = 1; // so long the page itself looks for a run's end before it waits to be woken
const MOST_PLAYED_MS = 2; // runs that the page plays one after the other before it does other things

// Warm-up: at least so long, at most so long once the weights are there, and at most so long.
const SETTLED_MS = 20;
const WARMUP_MS = 120;
const LONGEST_WARMUP_MS = 2000;
const WARMUP_WORK = 5e8; // products in a trial run at the larger sizes: 0.1 s of unoptimised code

/**
 * Where everything lies for one set of shapes.
 * @typedef {object} Layout
 * @property {Int32Array} params
 * @property {number[]} addresses per buffer of the plan
 * @property {number} pages
 * @property {Ways} ways
 */

/**
 * @param {Manifest} manifest
 * @param {Frame} run
 * @param {number} threads
 * @param {import("./dims.js").Dim} [scratchPerThread] of a tuned module
 * @returns {Layout}
 */
export function layout(manifest, run, threads, scratchPerThread) {
  const { params, weights_base, scratch_per_thread } = manifest.wasm;
  let end = align(weights_base + manifest.weights.bytes, SLOT_ALIGN);
  const place = (/** @type {number} */ bytes) => {
    const address = end;
    end = align(address + bytes, SLOT_ALIGN);
    return address;
  };
  const slots = run.slotBytes.map(place);
  const scratch = place(threads * evaluate(scratchPerThread ?? scratch_per_thread, run.sizes));
  const pages = Math.ceil((end + READ_SLACK) / PAGE);
  if (pages > MAX_PAGES) {
    throw new DeviceError("these shapes need more memory than WebAssembly has", {
      where: "wasm",
      got: `${Math.ceil(end / 2 ** 20)} MiB`,
      expected: "at most 4096 MiB",
      remedy: "Use smaller inputs.",
    });
  }
  return {
    params: Int32Array.from(params, (param) => {
      if ("slot" in param) return slots[param.slot];
      return "dim" in param ? evaluate(param.dim, run.sizes) : scratch;
    }),
    addresses: manifest.buffers.map((buffer) =>
      "slot" in buffer ? slots[buffer.slot] : weights_base + buffer.weight,
    ),
    pages,
    ways: new Ways(threads, navigator.hardwareConcurrency ?? 1),
  };
}

export class WasmHost {
  provider = "wasm";
  device = "WebAssembly";
  variant = "";
  gpuDevice = null;
  /** The bundle's file whose code runs, and on what, for code that is tuned to take its place. */
  codeFile = "";
  codeDevice = "";
  /** Tuned code is in use. */
  tuned = false;
  /** What the last run took. */
  lastMs = Infinity;
  /** What a trial run takes. */
  trialMs = Infinity;
  /** Set when no further run is possible. @type {DeviceError | null} */
  dead = null;

  /**
   * Starts the workers at once: they come up while the manifest travels.
   * @param {{threads?: number, warmup?: boolean}} options
   */
  constructor({ threads, warmup = true }) {
    this.warmup = warmup;
    this.noThreads = threadsMissing();
    const wanted = Math.min(threads ?? navigator.hardwareConcurrency ?? 1, MAX_THREADS);
    this.threads = this.noThreads === null ? Math.max(1, wanted) : 1;
    /** Of the page, to take turns with itself: the messages under way. @type {(() => void)[]} */
    this.tasks = [];
    this.turn = new MessageChannel();
    this.turn.port1.onmessage = () => this.tasks.shift()?.();
    /** So long the page has played runs itself since it could do other things. */
    this.playedMs = 0;
    /** It can, once it has played for long. */
    this.otherTasks = Promise.resolve();
    /** @type {WebAssembly.Module | null} */
    this.module = null;
    /** The same on the page's own thread, once needed. @type {WebAssembly.Instance | null} */
    this.own = null;
    /** @type {((error: DeviceError) => void)[]} */
    this.onDeath = [];
    /** @type {Worker[]} */
    this.workers = Array.from({ length: this.threads }, (_, i) => this.#spawn(i));
    /** @type {WebAssembly.Memory | null} */
    this.memory = null;
    this.generation = 0;
    /** @type {Map<string, Layout>} */
    this.layouts = new Map();
    /** Of a tuned module; otherwise the manifest says. @type {import("./dims.js").Dim | undefined} */
    this.scratchPerThread = undefined;
    /** What served best with an earlier module, by frame. @type {Map<string, Ways>} */
    this.ways = new Map();
    /** Key of the frame whose parameters are in memory. @type {string | null} */
    this.written = null;
    /** @type {Promise<unknown>} */
    this.tail = Promise.resolve();
  }

  /** @param {number} i */
  #spawn(i) {
    const url = new URL("./wasm-worker.js", import.meta.url);
    const worker = new Worker(url, { type: "module", name: `pywebgpu ${i}` });
    worker.onerror = (event) => {
      this.#die("a worker failed", event.message || "the worker's script could not be loaded");
    };
    worker.onmessage = ({ data }) => {
      if (data.failed) this.#die("the module failed", data.failed);
      else this.answer?.(data);
    };
    return worker;
  }

  /**
   * @param {string} what
   * @param {string} got
   */
  #die(what, got) {
    this.dead ??= new DeviceError(what, {
      where: "wasm",
      got,
      remedy: "Create the session again; if it happens again, report the model.",
    });
    this.release();
    for (const reject of this.onDeath.splice(0)) reject(this.dead);
  }

  /**
   * Wait for `count` messages of the workers.
   * @param {number} count
   * @returns {Promise<any>} the last one
   */
  #messages(count) {
    return new Promise((resolve, reject) => {
      if (this.dead) throw this.dead;
      this.onDeath = [reject];
      this.answer = (/** @type {any} */ data) => {
        if (--count === 0) resolve(data);
      };
    });
  }

  /**
   * @param {Bundle} bundle
   * @param {Unavailable[]} unavailable
   * @param {FindTuned} [tuned]
   */
  async load(bundle, unavailable, tuned) {
    const { manifest } = bundle;
    this.manifest = manifest;
    const variant = this.#choose(manifest, unavailable);
    this.variant = this.codeDevice = variant.name;
    this.codeFile = variant.file;
    bundle.expect([variant.file, ...manifest.weights.shards]);
    const trials = this.warmup ? trialFrames(manifest) : [];
    const { pages } = layout(manifest, trials.at(-1) ?? emptyFrame(manifest), this.threads);
    if (variant.threads) this.memory = reserve(pages);
    else this.workers[0].postMessage({ kind: "memory", pages });
    const started = this.#startModule(bundle.read(variant.file), tuned);
    const weights = this.#loadWeights(bundle);
    let arrived = false;
    weights.then(() => (arrived = true), () => {});
    await started;
    // Speed does not depend on the weights' values: the trial runs use the time of their download.
    const order = trialOrder(manifest, trials);
    const warm = this.#warmUp(order, () => arrived);
    await Promise.all([weights, warm]);
    // Once by all threads, which find their processors and the weights: the code is optimised, but
    // so far the first thread may have run alone. Two on one processor take twice as long.
    const all = always({ threads: this.threads, page: "sleeps" });
    if (this.trialMs < WARMUP_MS) await this.run(order[0], this.#zeros(order[0]), all);
    return this;
  }

  /**
   * The module that an earlier visit tuned, or the bundle's own.
   * @param {Promise<Uint8Array<ArrayBuffer>>} own
   * @param {FindTuned} [tuned]
   */
  async #startModule(own, tuned) {
    const [bytes, found] = await Promise.all([own, tuned?.(this.codeFile, this.variant)]);
    let module = null;
    // Damaged on the disk, the bundle's own is as right.
    if (found?.wasm) module = await WebAssembly.compile(found.wasm).catch(() => null);
    this.tuned = module !== null;
    if (module) this.scratchPerThread = found?.scratchPerThread;
    await this.#start(module ?? (await WebAssembly.compile(bytes)));
  }

  /**
   * Straight to where they belong. A shared memory also gives them back for the cache.
   * @param {Bundle} bundle
   */
  #loadWeights(bundle) {
    const base = bundle.manifest.wasm.weights_base;
    const { memory } = this;
    if (memory) {
      return bundle.weights(
        (block, offset) => new Uint8Array(memory.buffer, base + offset, block.length).set(block),
        (offset, bytes) => new Uint8Array(new Uint8Array(memory.buffer, base + offset, bytes)),
      );
    }
    return bundle.weights((block, offset) => {
      const data = block.slice();
      this.workers[0].postMessage({ kind: "write", address: base + offset, data }, [data.buffer]);
    });
  }

  /**
   * @param {Manifest} manifest
   * @param {Unavailable[]} unavailable
   */
  #choose(manifest, unavailable) {
    if (!simd()) {
      throw new DeviceError("this browser's WebAssembly has no SIMD", {
        where: "wasm",
        remedy: "Update the browser.",
      });
    }
    const relaxed = relaxedSimd();
    if (this.noThreads !== null) unavailable.push({ feature: "threads", reason: this.noThreads });
    if (!relaxed) {
      const reason = "this browser's WebAssembly has no relaxed SIMD. Update the browser";
      unavailable.push({ feature: "relaxed-simd", reason });
    }
    const found = manifest.wasm.variants.find(
      (v) => (relaxed || !v.relaxed) && v.threads === (this.noThreads === null),
    );
    if (found) return found;
    throw new DeviceError("the bundle has no WebAssembly module that runs here", {
      where: "wasm",
      got: manifest.wasm.variants.map((v) => v.name).join(", ") || "none",
      expected: this.noThreads === null ? "one with threads" : "one without threads",
      remedy: "Export the model with all variants.",
    });
  }

  /** @param {WebAssembly.Module} module */
  async #start(module) {
    this.module = module;
    this.own = null;
    const ready = this.#messages(this.threads);
    const tell = !("waitAsync" in Atomics);
    const { memory } = this;
    const generation = this.#word(0);
    // The page needs a processor, or it could not ask for the next run.
    const others = (navigator.hardwareConcurrency ?? 1) - 1;
    this.workers.forEach((worker, thread) => {
      const control = { generation: HOST_GENERATION + thread, done: HOST_DONE };
      const spin = thread < others;
      worker.postMessage(
        memory
          ? { kind: "shared", module, memory, thread, control, generation, tell, spin }
          : { kind: "own", module },
      );
    });
    await ready;
  }

  /** HOST_GENERATION of the last run, or of one on so many threads. @param {number} threads */
  #word(threads) {
    return (this.generation << 4) | threads;
  }

  /**
   * The first `count` workers, and no others: a worker that is woken for nothing takes a processor
   * from those that work, and waking it takes the page a fifth of a small model's run.
   * @param {Int32Array} words
   * @param {number} count
   * @param {number} threads that play the run; 0 calls the workers back to their messages
   */
  #call(words, count, threads) {
    this.generation++;
    for (let i = HOST_GENERATION; i < HOST_GENERATION + count; i++) {
      Atomics.store(words, i, this.#word(threads));
      Atomics.notify(words, i);
    }
  }

  /**
   * Take another module of the same plan into use, between two runs.
   * @param {WebAssembly.Module} module
   * @param {import("./dims.js").Dim} [scratchPerThread]
   * @returns {Promise<void>}
   */
  swap(module, scratchPerThread) {
    const done = this.tail.then(async () => {
      if (this.dead) throw this.dead;
      if (this.memory) {
        this.#call(new Int32Array(this.memory.buffer, 0, 64), this.threads, 0);
        await this.#start(module);
      } else {
        const ready = this.#messages(1);
        this.workers[0].postMessage({ kind: "swap", module });
        await ready;
      }
      this.scratchPerThread = scratchPerThread;
      this.tuned = true;
      // Scratch memory may be larger now; how many threads serve best is known.
      for (const [key, { ways }] of this.layouts) this.ways.set(key, ways);
      this.layouts.clear();
      this.written = null;
    });
    this.tail = done.catch(() => {});
    return done;
  }

  /**
   * Engines optimise a function after it has run for a while. Run until that shows, so that the
   * caller's first run is as quick as the later ones. The larger sizes come first: where weights
   * are there soon, the time is for code that most of the caller's runs will meet. No longer than
   * needed: on two processors the download waits for every run.
   * @param {Frame[]} trials
   * @param {() => boolean} arrived
   */
  async #warmUp(trials, arrived) {
    const alone = always({ threads: 1, page: "sleeps" });
    const start = performance.now();
    for (const [i, trial] of trials.entries()) {
      const inputs = this.#zeros(trial);
      const share = (i + 1) / trials.length;
      /** @type {number[]} */
      const times = [];
      for (let now = performance.now(); ; ) {
        // One thread leaves the other processors to the download; the code is the same for all.
        await this.run(trial, inputs, arrived() ? null : alone);
        const end = performance.now();
        times.push(end - now);
        now = end;
        const spent = now - start;
        if (spent > share * (arrived() ? WARMUP_MS : LONGEST_WARMUP_MS)) break;
        const [before, after] = [times.slice(-4, -2), times.slice(-2)].map((t) => Math.min(...t));
        if (spent > share * SETTLED_MS && times.length >= 4 && after > 0.95 * before) break;
      }
      this.trialMs = Math.min(this.trialMs, ...times);
      if (arrived() && performance.now() - start > WARMUP_MS) return;
    }
  }

  /** @param {Frame} run */
  #zeros({ bufferBytes }) {
    const { inputs } = /** @type {Manifest} */ (this.manifest);
    return inputs.map((port) => new Int32Array(Math.ceil(bufferBytes[port.buffer] / 4)));
  }

  /**
   * The outputs' bytes. Runs wait for each other: they share the activations' memory.
   * @param {Frame} run
   * @param {Packed[]} inputs
   * @param {Pick<Ways, "next" | "took"> | null} [ways] in which way; as it goes best
   * @returns {Promise<ArrayBuffer[]>}
   */
  run(run, inputs, ways = null) {
    const result = this.tail.then(() => this.#run(run, inputs, ways));
    this.tail = result.catch(() => {});
    return result;
  }

  /**
   * @param {Frame} run
   * @param {Packed[]} inputs
   * @param {Pick<Ways, "next" | "took"> | null} ways
   */
  async #run(run, inputs, ways) {
    if (this.dead) throw this.dead;
    const manifest = /** @type {Manifest} */ (this.manifest);
    const { params, addresses, pages, ways: usual } = this.#layout(run);
    /** @type {[number, Packed | Int32Array][]} */
    const writes = manifest.inputs.map((port, i) => [addresses[port.buffer], inputs[i]]);
    if (this.written !== run.key) writes.push([PARAMS_BASE, params]);
    const counted = walk(manifest.program).flatMap((item) => ("read" in item ? [item.read] : []));
    if (manifest.program.length) writes.push([FAULT, new Int32Array(1)]);
    /** @type {[number, number][]} */
    const reads = manifest.outputs.map((port, i) => [
      addresses[port.buffer],
      outputBytes(manifest, run, i),
    ]);
    if (manifest.program.length) {
      reads.push([FAULT, 4]);
      for (const { buffer } of counted) reads.push([addresses[buffer], 4]);
    }
    this.written = null;
    const start = performance.now();
    const results = this.memory
      ? await this.#runShared(this.memory, pages, writes, reads, ways ?? usual)
      : await this.#runOwn(pages, writes, reads);
    this.written = run.key;
    this.lastMs = performance.now() - start;
    if (manifest.program.length) {
      const [fault, ...found] = results
        .splice(manifest.outputs.length)
        .map((bytes) => new Int32Array(bytes, 0, 1)[0]);
      const elements = new Map(counted.map(({ buffer }, i) => [buffer, found[i]]));
      settle(manifest.program, fault, elements, run.sizes);
    }
    return results;
  }

  /** Whether the frame's runs only try ways so far. @param {Frame} run */
  comparing(run) {
    return this.#layout(run).ways.comparing;
  }

  /** @param {Frame} run @returns {Layout} */
  #layout(run) {
    let found = this.layouts.get(run.key);
    if (!found) {
      if (this.layouts.size >= 16) this.layouts.clear();
      const manifest = /** @type {Manifest} */ (this.manifest);
      found = layout(manifest, run, this.threads, this.scratchPerThread);
      found.ways = this.ways.get(run.key) ?? found.ways;
      this.layouts.set(run.key, found);
    }
    return found;
  }

  /**
   * @param {WebAssembly.Memory} memory
   * @param {number} pages
   * @param {[number, Packed][]} writes
   * @param {[number, number][]} reads
   * @param {Pick<Ways, "next" | "took">} ways
   */
  async #runShared(memory, pages, writes, reads, ways) {
    grow(memory, pages);
    for (const [address, { buffer, byteOffset, byteLength }] of writes) {
      const content = new Uint8Array(buffer, byteOffset, byteLength);
      new Uint8Array(memory.buffer, address, byteLength).set(content);
    }
    const way = ways.next();
    const start = performance.now();
    if (way.page === "plays") await this.#playHere(memory);
    else await this.#playThere(new Int32Array(memory.buffer, 0, 64), way);
    if (this.dead) throw this.dead;
    ways.took(performance.now() - start);
    return reads.map(([address, bytes]) => {
      // A copy, and not a shared one: callers keep it, and most APIs refuse shared memory.
      const copy = new Uint8Array(outputMemory(bytes));
      copy.set(new Uint8Array(memory.buffer, address, bytes));
      return copy.buffer;
    });
  }

  /**
   * On the page's own thread. Runs that follow each other leave it time for other things now and then.
   * @param {WebAssembly.Memory} memory
   */
  async #playHere(memory) {
    try {
      const module = /** @type {WebAssembly.Module} */ (this.module);
      this.own ??= await WebAssembly.instantiate(module, { env: { memory } });
      await this.otherTasks;
      const start = performance.now();
      /** @type {any} */ (this.own.exports).run(0, 1);
      this.playedMs += performance.now() - start;
    } catch (error) {
      this.#die("the module failed", String(error));
    }
    if (this.playedMs < MOST_PLAYED_MS) return;
    this.playedMs = 0;
    this.otherTasks = this.#task();
  }

  /**
   * @param {Int32Array} words
   * @param {import("./wasm-ways.js").Way} way
   */
  async #playThere(words, way) {
    const told = "waitAsync" in Atomics ? null : this.#messages(1);
    Atomics.store(words, HOST_DONE, 0);
    this.#call(words, way.threads, way.threads);
    await (told ?? this.#allDone(words, way));
  }

  /**
   * Looks at and waits on the memory itself: 20 microseconds less than a message takes.
   * @param {Int32Array} words
   * @param {import("./wasm-ways.js").Way} way
   */
  async #allDone(words, { threads, page }) {
    const until = page === "looks" ? performance.now() + LOOK_MS : 0;
    while (Atomics.load(words, HOST_DONE) < threads && performance.now() < until) await this.#task();
    for (let count = 0; (count = Atomics.load(words, HOST_DONE)) < threads; ) {
      await Atomics.waitAsync(words, HOST_DONE, count).value;
    }
  }

  /** Let the page do what else there is. @returns {Promise<void>} */
  #task() {
    return new Promise((resolve) => {
      this.tasks.push(resolve);
      this.turn.port2.postMessage(null);
    });
  }

  /**
   * @param {number} pages
   * @param {[number, Packed][]} inputs
   * @param {[number, number][]} outputs
   * @returns {Promise<ArrayBuffer[]>}
   */
  async #runOwn(pages, inputs, outputs) {
    const done = this.#messages(1);
    this.workers[0].postMessage({ kind: "run", pages, inputs, outputs });
    return (await done).results;
  }

  release() {
    for (const worker of this.workers) worker.terminate();
    this.turn.port1.close();
    for (const go of this.tasks.splice(0)) go();
    if (this.memory) {
      // Whoever waits for the terminated workers wakes up and finds the session dead.
      const words = new Int32Array(this.memory.buffer, 0, 64);
      Atomics.store(words, HOST_DONE, this.threads);
      Atomics.notify(words, HOST_DONE);
    }
    this.memory = this.own = null;
    this.dead ??= new DeviceError("the session has been released", { where: "wasm" });
    for (const reject of this.onDeath.splice(0)) reject(this.dead);
  }
}

/**
 * Of the frames of `trialFrames` those that warm-up takes, the larger sizes first. How much work
 * those are is not known before: at most every weight at every position of an input, roughly.
 * @param {Pick<Manifest, "inputs" | "weights">} manifest
 * @param {Frame[]} trials
 */
export function trialOrder({ inputs, weights }, trials) {
  const positions = (/** @type {Frame} */ { sizes }) =>
    inputs.map(({ shape }) =>
      product(shape.map((dim) => (typeof dim === "number" ? 1 : evaluate(dim, sizes)))),
    );
  const most = (4 * WARMUP_WORK) / weights.bytes;
  return trials.filter((trial, i) => !i || Math.max(...positions(trial)) <= most).reverse();
}

/** Sizes of an empty run: what the weights alone need. @param {Manifest} manifest @returns {Frame} */
function emptyFrame(manifest) {
  return frame(manifest, new Map(manifest.symbols.map((symbol) => [symbol, 0])));
}

/**
 * A shared memory that can grow as far as the browser lets it: how far must be said beforehand.
 * @param {number} pages
 */
function reserve(pages) {
  for (let maximum = MAX_PAGES; ; maximum >>= 1) {
    try {
      return new WebAssembly.Memory({ initial: pages, maximum, shared: true });
    } catch (error) {
      if (maximum / 2 < pages) throw noMemory(pages, error);
    }
  }
}

/**
 * @param {WebAssembly.Memory} memory
 * @param {number} pages
 */
function grow(memory, pages) {
  const missing = pages - memory.buffer.byteLength / PAGE;
  if (missing <= 0) return;
  try {
    memory.grow(missing);
  } catch (error) {
    throw noMemory(pages, error);
  }
}

/**
 * @param {number} pages
 * @param {unknown} cause
 */
function noMemory(pages, cause) {
  return new DeviceError("the browser does not give that much memory", {
    where: "wasm",
    got: cause,
    expected: `${pages / 16} MiB`,
    remedy: "Use smaller inputs, or close other pages.",
    cause,
  });
}
