// InferenceSession: a bundle on the first of the caller's providers that works here.

import { Bundle } from "./bundle.js";
import { evaluate } from "./dims.js";
import { DeviceError, InputError } from "./errors.js";
import { GpuMemory } from "./gpu-memory.js";
import { GpuTensor } from "./gpu-tensor.js";
import { checkRecords, Kept } from "./kept.js";
import { bind, frame, keyOf, outputBytes, shapesOf, text, trialFrames } from "./shapes.js";
import { pack, unpack, zeros } from "./tensor.js";
import { WasmHost } from "./wasm.js";
import { GpuHost } from "./webgpu.js";

/** @typedef {import("./bundle.js").Manifest} Manifest */
/** @typedef {import("./bundle.js").OnProgress} OnProgress */
/** @typedef {import("./bundle.js").Port} Port */
/** @typedef {import("./bundle.js").Unavailable} Unavailable */
/** @typedef {import("./shapes.js").Frame} Frame */
/** @typedef {import("./tensor.js").Tensor} Tensor */
/** @typedef {import("./wasm.js").Packed} Packed */

/**
 * @typedef {object} Options
 * @property {("webgpu" | "wasm")[]} [executionProviders] tried in this order
 * @property {OnProgress} [onProgress]
 * @property {AbortSignal} [signal] gives up the download
 * @property {GPUDevice} [device] to use instead of asking for one
 * @property {number} [threads] for wasm; by default one per processor, at most 8
 * @property {boolean} [warmup] run on zeros while weights arrive, so that the first run is as
 *   quick as the later ones (default true)
 * @property {boolean} [tuned] start with what an earlier visit's tuning found (default true)
 * @property {import("./kept.js").Records | string | URL} [records] for tunings: see their options
 */
/** @typedef {WasmHost | GpuHost} Host */

/** @type {Record<string, new (options: Options) => Host>} */
const HOSTS = { webgpu: GpuHost, wasm: WasmHost };
const FRAMES = 64;
const REHEARSAL_MS = 20;
const REHEARSED_MS = 5; // of longer runs JavaScript is a small part

export class InferenceSession {
  /** @type {Host} */
  #host;
  #bundle;
  #options;
  #unavailable;
  /** @type {Map<string, Frame>} */
  #frames = new Map();
  #released = false;
  /** @type {Promise<void> | null} */
  #rebuilding = null;
  #kept;
  /** The sizes of the last run. @type {Frame | null} */
  #last = null;
  /** The tuning under way. @type {import("./tune/tuning.js").Tuning | null} */
  #tuning = null;

  /**
   * Not for callers: see `create`.
   * @param {Host} host
   * @param {Bundle} bundle
   * @param {Options} options
   * @param {Unavailable[]} unavailable
   * @param {Kept} kept
   */
  constructor(host, bundle, options, unavailable, kept) {
    this.#host = host;
    this.#bundle = bundle;
    this.#options = options;
    this.#unavailable = unavailable;
    this.#kept = kept;
  }

  /**
   * @param {string | URL | import("./bundle.js").Files} location the bundle's folder, relative to
   *   the page; or its files by name, where the page holds them
   * @param {Options} [options]
   * @returns {Promise<InferenceSession>}
   */
  static async create(location, options = {}) {
    const providers = options.executionProviders ?? ["webgpu", "wasm"];
    const strange = providers.find((name) => !Object.hasOwn(HOSTS, name));
    if (strange !== undefined || !providers.length) {
      throw new InputError("no such execution provider", {
        where: "executionProviders",
        got: strange ?? "an empty list",
        expected: Object.keys(HOSTS).join(", "),
      });
    }
    const { records } = options;
    if (typeof records === "object" && !(records instanceof URL)) {
      checkRecords(records, "create, records");
    }
    options.signal?.throwIfAborted();
    // The first provider prepares while the manifest travels.
    let host = new HOSTS[providers[0]](options);
    const kept = new Kept(options.tuned !== false); // looks meanwhile
    /** @type {Bundle | null} */
    let bundle = null;
    try {
      bundle = await Bundle.open(location, options);
      /** @type {Unavailable[]} */
      const unavailable = [];
      for (const [i, name] of providers.entries()) {
        if (i > 0) host = new HOSTS[name](options);
        try {
          const loaded = /** @type {Promise<unknown>} */ (
            host.load(bundle, unavailable, kept.finder(bundle.manifest))
          );
          await abortable(loaded, options.signal);
          const session = new InferenceSession(host, bundle, options, unavailable, kept);
          await abortable(session.#rehearse(), options.signal);
          return session;
        } catch (error) {
          host.release();
          if (!(error instanceof DeviceError)) throw error;
          if (providers.length === 1) throw error;
          unavailable.push({ feature: name, reason: error.message });
        }
      }
      throw new DeviceError("none of the execution providers works here", {
        where: "executionProviders",
        got: unavailable.map(({ feature, reason }) => `${feature}: ${reason}`).join("; "),
      });
    } catch (error) {
      host.release();
      throw error;
    } finally {
      // Also after a failure: another attempt begins with the files that have arrived.
      bundle?.save();
    }
  }

  /**
   * Take zeros through all of `run`, with the model where it is quick: JavaScript, too, is
   * optimised after it has run for a while, and for a small model it is half of the time.
   */
  async #rehearse() {
    const { manifest } = this.#bundle;
    const [trial] = this.#options.warmup === false ? [] : trialFrames(manifest);
    if (!trial) return;
    const feeds = Object.fromEntries(
      manifest.inputs.map((port) => {
        const dims = port.shape.map((dim) => evaluate(dim, trial.sizes));
        return [port.name, zeros(port.dtype, dims)];
      }),
    );
    const { run } = this.#prepare(feeds);
    this.#results(run, manifest.outputs.map((_, i) => new ArrayBuffer(outputBytes(manifest, run, i))));
    const host = this.#host;
    if (host instanceof GpuHost) {
      // Its trial run was the first, with the driver's work in it. JavaScript is a small part of
      // the others, most is waiting for the answer.
      if (host.trialMs < REHEARSAL_MS) await this.run(feeds);
      return;
    }
    if (host.trialMs > REHEARSED_MS) return;
    const start = performance.now();
    // Not in the midst of a comparison: the caller's first run is to go the way that won.
    const comparing = () => host instanceof WasmHost && host.comparing(run);
    while (performance.now() - start < REHEARSAL_MS || comparing()) await this.run(feeds);
  }

  /** @param {Record<string, Tensor | GpuTensor>} feeds */
  #prepare(feeds) {
    const run = this.#frame(feeds);
    const inputs = this.#bundle.manifest.inputs.map((port) => {
      const feed = feeds[port.name];
      if (feed instanceof GpuTensor) return this.#resident(feed, port);
      return pack(feed, port);
    });
    return { run, inputs };
  }

  /**
   * @param {GpuTensor} tensor
   * @param {Port} port
   */
  #resident(tensor, port) {
    const where = `input "${port.name}"`;
    tensor.check(where);
    if (!this.device || tensor.device !== this.device) {
      throw new InputError("the tensor lies on another device than the session's", {
        where,
        got: this.device ? "a tensor of another or a lost device" : `a session on ${this.provider}`,
        remedy: "Make it with this session's upload(), or feed a Tensor with its data().",
      });
    }
    if (tensor.storage !== port.storage) {
      throw new InputError("the tensor's elements lie otherwise than this bundle reads them", {
        where,
        got: tensor.storage,
        expected: port.storage,
        remedy: "Make it with this session's upload().",
      });
    }
    return tensor;
  }

  /**
   * The feeds as tensors on the GPU, for runs that are to take them from there.
   * @template {Record<string, Tensor>} Feeds
   * @param {Feeds} feeds any of the model's inputs
   * @returns {{[name in keyof Feeds]: GpuTensor}}
   */
  upload(feeds) {
    const device = this.#gpu("upload");
    const memory = GpuMemory.of(device);
    const ports = new Map(this.#bundle.manifest.inputs.map((port) => [port.name, port]));
    const made = Object.entries(feeds).map(([name, tensor]) => {
      const port = ports.get(name);
      if (!port) {
        const expected = this.inputNames.join(", ");
        throw new InputError("the model has no such input", { where: "upload", got: name, expected });
      }
      const data = pack(tensor, port);
      const buffer = memory.take(data.byteLength);
      if (data.byteLength) memory.write(buffer, data);
      return [name, new GpuTensor(device, buffer, tensor.type, tensor.dims, port.storage, true)];
    });
    return Object.fromEntries(made);
  }

  /** @param {string} where for messages */
  #gpu(where) {
    if (this.device) return this.device;
    throw new InputError("the session does not run on a GPU", {
      where,
      got: this.provider,
      expected: "webgpu",
      remedy: "Create the session with executionProviders: [\"webgpu\"].",
    });
  }

  /**
   * Where a run's time goes on the GPU, in milliseconds.
   * @param {Record<string, Tensor | GpuTensor>} feeds
   * @param {{repeats?: number}} [options] each step is repeated to be longer than a clock's tick
   */
  async profile(feeds, { repeats = 20 } = {}) {
    this.#gpu("profile");
    const host = /** @type {GpuHost} */ (this.#host);
    const { run, inputs } = this.#prepare(feeds);
    const { stepMs, ...rest } = await host.profile(run, inputs, repeats);
    const { steps } = this.#bundle.manifest.webgpu;
    return { ...rest, steps: [...stepMs].map(([i, ms]) => ({ label: steps[i].label, ms })) };
  }

  /**
   * @param {Frame} run
   * @param {ArrayBuffer[]} outputs
   * @returns {Record<string, Tensor>}
   */
  #results(run, outputs) {
    return Object.fromEntries(
      this.#bundle.manifest.outputs.map((port, i) => [
        port.name,
        unpack(outputs[i], port.storage, port.dtype, run.shapes[i] ?? []),
      ]),
    );
  }

  /**
   * The model's outputs for these inputs. After a GPU device was lost the session opens another
   * one, loads the bundle again (from the cache where there is one) and repeats the run, once:
   * not where an input lay on that device.
   * @template {"js" | "gpu"} [Where="js"]
   * @param {Record<string, Tensor | GpuTensor>} feeds
   * @param {{signal?: AbortSignal, outputs?: Where}} [options] the signal rejects the promise; work
   *   that has begun is finished in the background. With outputs "gpu" the promise resolves as
   *   soon as the work is encoded; it is submitted with that of following runs, at the latest when
   *   a tensor's `buffer` or `data` is asked for or the page's task ends
   * @returns {Promise<Record<string, Where extends "gpu" ? GpuTensor : Tensor>>}
   */
  async run(feeds, { signal, outputs } = {}) {
    signal?.throwIfAborted();
    const { run, inputs } = this.#prepare(feeds);
    if (outputs !== "gpu") {
      const bytes = await abortable(this.#play(run, inputs, false), signal);
      return /** @type {any} */ (this.#results(run, bytes));
    }
    this.#gpu("run with outputs on the GPU");
    const buffers = await abortable(this.#play(run, inputs, true), signal);
    const device = this.#gpu("run with outputs on the GPU"); // a new one after a loss
    const made = this.#bundle.manifest.outputs.map(({ name, dtype, storage }, i) => [
      name,
      new GpuTensor(device, buffers[i], dtype, run.shapes[i] ?? [], storage, true),
    ]);
    return Object.fromEntries(made);
  }

  /**
   * @template {boolean} Stay
   * @param {Frame} run
   * @param {(Packed | GpuTensor)[]} inputs
   * @param {Stay} stay
   * @returns {Promise<Stay extends true ? GPUBuffer[] : ArrayBuffer[]>}
   */
  async #play(run, inputs, stay) {
    this.#last = run;
    const turns = this.#tuning?.turns;
    turns?.enter();
    try {
      const outputs = await this.#persist(run, inputs, stay);
      const { manifest } = this.#bundle;
      // A program has found out sizes; otherwise the frame knows them all.
      if (manifest.program.length) run.shapes = shapesOf(manifest, run.sizes);
      return outputs;
    } finally {
      turns?.leave();
    }
  }

  /**
   * Also where the device is lost.
   * @template {boolean} Stay
   * @param {Frame} run
   * @param {(Packed | GpuTensor)[]} inputs
   * @param {Stay} stay
   * @returns {Promise<Stay extends true ? GPUBuffer[] : ArrayBuffer[]>}
   */
  async #persist(run, inputs, stay) {
    const play = () => {
      const host = this.#host;
      if (host instanceof GpuHost) return host.run(run, inputs, stay);
      return /** @type {Promise<any>} */ (host.run(run, /** @type {Packed[]} */ (inputs)));
    };
    try {
      return await play();
    } catch (error) {
      if (this.#released || !this.#isReplaceable()) throw error;
      this.#rebuilding ??= this.#rebuild().finally(() => (this.#rebuilding = null));
      await this.#rebuilding;
      if (inputs.some((input) => !ArrayBuffer.isView(input))) throw error;
      return play();
    }
  }

  #isReplaceable() {
    const host = this.#host;
    if (!(host instanceof GpuHost)) return false;
    return host.wrong !== null || (host.lost !== null && !this.#options.device);
  }

  async #rebuild() {
    // Several runs may have failed with one device: the first to come here replaces it for all.
    if (!this.#isReplaceable()) return;
    const old = /** @type {GpuHost} */ (this.#host);
    this.#bundle.signal = undefined;
    const host = old.wrong
      ? await this.#avoid(old)
      : await this.#load(new GpuHost({ ...this.#options, without: old.without }), []);
    old.release();
    this.#host = host;
    if (this.#released) host.release();
  }

  /**
   * Where shaders compute wrongly: the next variant of them, or wasm. Rejects with what was wrong.
   * @param {GpuHost} old
   * @returns {Promise<Host>}
   */
  async #avoid(old) {
    const { name } = /** @type {import("./bundle.js").GpuVariant} */ (old.chosen);
    const wrong = /** @type {DeviceError} */ (old.wrong);
    this.#unavailable.push({ feature: `wgsl-${name}`, reason: wrong.message });
    const without = [...old.without, name];
    try {
      return await this.#load(new GpuHost({ ...this.#options, without }), this.#unavailable);
    } catch (cause) {
      const wasm = this.#options.executionProviders?.includes("wasm") ?? true;
      if (!wasm || !(cause instanceof DeviceError)) throw wrong;
    }
    try {
      return await this.#load(new WasmHost(this.#options), this.#unavailable);
    } catch {
      throw wrong;
    }
  }

  /**
   * @param {Host} host
   * @param {Unavailable[]} unavailable
   */
  async #load(host, unavailable) {
    try {
      await host.load(this.#bundle, unavailable, this.#kept.finder(this.#bundle.manifest));
    } catch (error) {
      host.release();
      throw error;
    }
    return host;
  }

  /**
   * Small kernels of each family that the model uses on this GPU, against known answers: what is
   * wrong. A session does this by itself after its first run, once per device; where something is
   * wrong, the next run goes to other shaders or to wasm, or rejects.
   * @returns {Promise<{family: string, problem: string}[]>}
   */
  async selfTest() {
    const wrong = this.#host instanceof GpuHost ? await this.#host.selfTest() : [];
    return wrong.map(({ family, problem }) => ({ family, problem }));
  }

  /** @param {Record<string, Tensor | GpuTensor>} feeds */
  #frame(feeds) {
    const { manifest } = this.#bundle;
    const sizes = bind(manifest, feeds);
    const key = keyOf(manifest, sizes);
    let run = this.#frames.get(key);
    if (!run) {
      if (this.#frames.size >= FRAMES) this.#frames.clear();
      run = frame(manifest, sizes);
      this.#frames.set(key, run);
    }
    // A program finds out sizes of its own in every run.
    return manifest.program.length ? { ...run, sizes: new Map(run.sizes) } : run;
  }

  /**
   * Find quicker kernels for this device while the page goes on: Python in a worker generates
   * candidates, they are measured while no run is going on, and winners are taken into use between
   * two runs. What is found is kept for the next visit.
   * @param {import("./tune/tuning.js").TuneOptions} [options]
   */
  async tune(options = {}) {
    const { Tuning } = await import("./tune/tuning.js");
    if (this.#released) throw new DeviceError("the session has been released", { where: "tune" });
    if (this.#tuning) {
      throw new InputError("the session is being tuned already", {
        where: "tune",
        remedy: "Wait for the tuning's `finished`, or cancel it.",
      });
    }
    const seat = { bundle: this.#bundle, kept: this.#kept };
    const tuning = new Tuning(
      { ...seat, host: () => this.#host, frame: () => this.#last },
      { ...options, records: options.records ?? this.#options.records },
    );
    this.#tuning = tuning;
    tuning.ended.then(() => (this.#tuning = null));
    return tuning;
  }

  /** What tuning has found out on this device, in the form of records.schema.json. */
  records() {
    return this.#kept.records();
  }

  get inputNames() {
    return this.#bundle.manifest.inputs.map((port) => port.name);
  }

  get outputNames() {
    return this.#bundle.manifest.outputs.map((port) => port.name);
  }

  get inputMetadata() {
    return this.#bundle.manifest.inputs.map(metadata);
  }

  get outputMetadata() {
    return this.#bundle.manifest.outputs.map(metadata);
  }

  get provider() {
    return this.#host.provider;
  }

  /** The GPU device in use, to share or to watch; null on wasm. */
  get device() {
    return this.#host.gpuDevice;
  }

  /** What runs where, and what could not be used here and why. */
  get info() {
    const { provider, device, threads, variant, tuned } = this.#host;
    const unavailable = [...this.#unavailable, ...this.#bundle.unavailable];
    return { provider, device, threads, variant, tuned, unavailable };
  }

  /** Frees workers, memory and the GPU device (not a given one). Later runs reject. */
  release() {
    this.#released = true;
    this.#tuning?.cancel();
    this.#host.release();
  }
}

/** @param {Port} port */
const metadata = ({ name, dtype, shape }) => ({
  name,
  type: dtype,
  shape: shape.map((dim) => (typeof dim === "number" ? dim : text(dim))),
});

/**
 * `work`, or a rejection as soon as `signal` fires.
 * @template T
 * @param {Promise<T>} work
 * @param {AbortSignal} [signal]
 * @returns {Promise<T>}
 */
function abortable(work, signal) {
  if (!signal) return work;
  /** @type {() => void} */
  let stop = () => {};
  const aborted = new Promise((_, reject) => {
    stop = () => reject(signal.reason);
    signal.addEventListener("abort", stop);
  });
  return Promise.race([work, aborted]).finally(() => signal.removeEventListener("abort", stop));
}
