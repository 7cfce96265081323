// One case, several runtimes, alternating in one page. Python drives it through `window.bench`.
//
// A runtime is an object with `prepare(caseInfo)` and `run()`; `run` resolves when its output is
// complete and in JavaScript's hands (or, for the GPU, provably computed). Every runtime's output
// is compared with native ONNX Runtime's before any timing counts: one that skips the work cannot
// win.

import { Machine } from "./machine.js";

/** @typedef {{name: string, dims: Record<string, number>, op: Record<string, any>, model: string,
 *   lite: string, expected: string, bundle: string, bundleInt8: string, modelInt8: string,
 *   constants: Record<string, {url: string, shape: number[]}>,
 *   feeds: Record<string, Feed>, modelFeeds: Record<string, Feed>}} CaseInfo `modelFeeds` are in
 *   the types that `model` has, `feeds` in the bundle's */
/** @typedef {{type: string, shape: number[], url: string}} Feed */
/** @typedef {{provider: "wasm"|"webgpu", threads: number, rounds: number, budgetMs: number,
 *   runtimes: string[], inFlight?: number, least?: number, capMs?: number,
 *   machine?: {code: string, pages: number, patienceMs: number}}} Options `least` runs a turn; after
 *   `capMs` no round begins but the third; with `machine` only turns count in which it was whole */

/** @param {string} url */
const bytes = async (url) => (await fetch(url)).arrayBuffer();

const ARRAYS = /** @type {Record<string, any>} */ ({
  float32: Float32Array, int64: BigInt64Array, int32: Int32Array, uint8: Uint8Array,
  bool: Uint8Array, float16: /** @type {any} */ (globalThis).Float16Array ?? Uint16Array,
});

/** @param {Record<string, Feed>} feeds */
async function feedArrays(feeds) {
  const out = /** @type {Record<string, {type: string, data: any, dims: number[]}>} */ ({});
  for (const [name, feed] of Object.entries(feeds)) {
    out[name] = { type: feed.type, data: new ARRAYS[feed.type](await bytes(feed.url)), dims: feed.shape };
  }
  return out;
}

/**
 * Waits for all work so far, as queues keep their order, but not for a whole output's transfer.
 * @param {GPUDevice} device @param {GPUBuffer} buffer
 */
async function readOne(device, buffer) {
  const { COPY_DST, MAP_READ } = GPUBufferUsage;
  const target = device.createBuffer({ size: 4, usage: COPY_DST | MAP_READ });
  const encoder = device.createCommandEncoder();
  encoder.copyBufferToBuffer(buffer, 0, target, 0, 4);
  device.queue.submit([encoder.finish()]);
  await target.mapAsync(GPUMapMode.READ);
  target.destroy();
}

class Ours {
  /** @param {Options} options */
  constructor(options) { this.options = options; }
  /** @param {CaseInfo} info */
  async prepare(info) {
    const { InferenceSession, Tensor } = await import("../web/pywebgpu.js");
    const start = performance.now();
    this.session = await InferenceSession.create(new URL(info.bundle, location.href).href, {
      executionProviders: [this.options.provider], threads: this.options.threads,
    });
    this.created = performance.now() - start;
    this.feeds = /** @type {any} */ ({});
    for (const [name, feed] of Object.entries(await feedArrays(info.feeds))) {
      this.feeds[name] = new Tensor(feed.type, feed.data, feed.dims);
    }
    this.device = this.session.info;
    // Like the peers': inputs lie on the GPU, outputs stay there.
    if (this.options.provider === "webgpu") this.feeds = this.session.upload(this.feeds);
  }
  async profile() {
    try {
      const { hostMs, deviceMs, steps } = await this.session.profile(this.feeds);
      return { hostMs, deviceMs, steps };
    } catch {
      return {}; // no timestamps here
    }
  }
  async run() {
    return (this.output = (await this.session.run(this.feeds))[this.session.outputNames[0]]).data;
  }
  recycle() { this.output.dispose(); }
  /** @param {number} runs */
  async many(runs) {
    let last;
    for (let i = 0; i < runs; i++) {
      if (last) for (const tensor of Object.values(last)) tensor.dispose();
      last = await this.session.run(this.feeds, { outputs: "gpu" });
    }
    await readOne(this.session.device, last[this.session.outputNames[0]].buffer);
    for (const tensor of Object.values(last)) tensor.dispose();
  }
  async release() { await this.session.release(); }
}

class OrtWeb {
  capture = false;
  /** @param {Options} options */
  constructor(options) { this.options = options; }
  /** @param {CaseInfo} info */
  async prepare(info) {
    const file = this.options.provider === "wasm" ? "ort.wasm.min.mjs" : "ort.jspi.min.mjs";
    this.ort = await import(`../peers/onnxruntime-web/${file}`);
    this.ort.env.wasm.wasmPaths = new URL("../peers/onnxruntime-web/", location.href).href;
    this.ort.env.wasm.numThreads = this.options.threads;
    const gpu = this.options.provider === "webgpu";
    const start = performance.now();
    this.session = await this.ort.InferenceSession.create(new Uint8Array(await bytes(info.model)), {
      executionProviders: [this.options.provider], graphOptimizationLevel: "all",
      ...(gpu ? { preferredOutputLocation: "gpu-buffer" } : {}),
      ...(this.capture ? { enableGraphCapture: true } : {}),
    });
    this.created = performance.now() - start;
    this.feeds = /** @type {any} */ ({});
    const device = gpu ? await this.ort.env.webgpu.device : null;
    for (const [name, feed] of Object.entries(await feedArrays(info.modelFeeds))) {
      this.feeds[name] = gpu
        ? this.resident(device, feed)
        : new this.ort.Tensor(feed.type, feed.data, feed.dims);
    }
  }
  /** The peer's best case: its inputs lie on the GPU already. @param {any} device @param {any} feed */
  resident(device, feed) {
    const { STORAGE, COPY_SRC, COPY_DST } = GPUBufferUsage;
    const size = Math.ceil(feed.data.byteLength / 16) * 16;
    const buffer = device.createBuffer({ size, usage: STORAGE | COPY_SRC | COPY_DST });
    device.queue.writeBuffer(buffer, 0, feed.data);
    return this.ort.Tensor.fromGpuBuffer(buffer, { dataType: feed.type, dims: feed.dims });
  }
  /** @param {number} runs */
  async many(runs) {
    let last;
    for (let i = 0; i < runs; i++) {
      const out = await this.session.run(this.feeds);
      if (!this.capture && last) last.dispose(); // captured graphs own their outputs
      last = out[this.session.outputNames[0]];
    }
    await readOne(await this.ort.env.webgpu.device, last.gpuBuffer);
  }
  async run() {
    const out = await this.session.run(this.feeds);
    this.output = out[this.session.outputNames[0]];
    return this.output.getData ? await this.output.getData() : this.output.data;
  }
  recycle() { if (!this.capture) this.output.dispose(); }
  async release() { await this.session.release(); }
}

class OrtCapture extends OrtWeb {
  capture = true;
}

// TF.js and XNNPACK below it are channels-last: its input and output are transposed outside the
// timed part, as a page that stays in TF.js would hold them.
class TfJs {
  /** @param {Options} options */
  constructor(options) { this.options = options; }
  /** @param {CaseInfo} info */
  async prepare(info) {
    const tf = this.tf = /** @type {any} */ (globalThis).tf;
    if (!info.op.op) throw new Error("no TF.js form of this case");
    const backend = this.options.provider === "wasm" ? "wasm" : "webgpu";
    if (backend === "wasm") {
      tf.wasm.setWasmPaths(new URL("../peers/tfjs-backend-wasm/", location.href).href);
      tf.wasm.setThreadsCount(this.options.threads);
    }
    await tf.setBackend(backend);
    await tf.ready();
    const feeds = await feedArrays(info.feeds);
    const constant = async (/** @type {string} */ name) => tf.tensor(
      new Float32Array(await bytes(info.constants[name].url)), info.constants[name].shape);
    const x = tf.tensor(feeds.x.data, feeds.x.dims);
    const w = await constant("w");
    if (info.op.op === "matmul") {
      this.compute = () => tf.matMul(x, w);
      this.finish = (/** @type {any} */ y) => y;
      return;
    }
    const b = await constant("b");
    const nhwc = tf.transpose(x, [0, 2, 3, 1]);
    const { stride, pad, op } = info.op;
    const padding = [[0, 0], [pad, pad], [pad, pad], [0, 0]];
    const [perm, kind] = op === "depthwise" ? [[2, 3, 0, 1], "depthwiseConv2d"] : [[2, 3, 1, 0], "conv2d"];
    const filter = tf.transpose(w, perm);
    this.compute = () => tf.fused[kind]({
      x: nhwc, filter, strides: [stride, stride], pad: padding, dataFormat: "NHWC", bias: b,
      dimRoundingMode: "floor",
    });
    this.finish = (/** @type {any} */ y) => tf.transpose(y, [0, 3, 1, 2]);
  }
  async run() {
    const y = this.compute();
    const data = await y.data();
    y.dispose();
    return data;
  }
  /** @param {number} runs */
  async many(runs) {
    for (let i = 1; i < runs; i++) this.compute().dispose();
    const y = this.compute();
    const one = this.tf.slice(y, y.shape.map(() => 0), y.shape.map(() => 1));
    await one.data(); // like `readOne`
    this.tf.dispose([y, one]);
  }
  async result() {
    const y = this.finish(this.compute());
    return y.data();
  }
  async release() {}
}

class OursInt8 extends Ours {
  /** @param {CaseInfo} info */
  async prepare(info) { await super.prepare({ ...info, bundle: info.bundleInt8 }); }
}

class OrtInt8 extends OrtWeb {
  /** @param {CaseInfo} info */
  async prepare(info) { await super.prepare({ ...info, model: info.modelInt8 }); }
}

// XNNPACK again, with relaxed SIMD; channels last like TF.js, and like there its input stays where
// it is from run to run.
class LiteRt {
  /** @param {Options} options */
  constructor(options) { this.options = options; }
  /** @param {CaseInfo} info */
  async prepare(info) {
    if (!info.op.op) throw new Error("no LiteRT form of this case");
    const core = "../peers/core/";
    const { loadLiteRt, loadAndCompile, Tensor } = await import(`${core}index.js`);
    await loadLiteRt(new URL(core, location.href).href, { threads: true });
    this.model = await loadAndCompile(new URL(info.lite, location.href).href, {
      accelerator: "wasm", cpuOptions: { numThreads: this.options.threads },
    });
    const { x } = await feedArrays(info.feeds);
    const { data, dims } = x.dims.length === 4 ? moveChannels(x.data, x.dims, true) : x;
    this.x = new Tensor(data, dims);
  }
  async compute() {
    const [y] = await this.model.run([this.x]);
    const found = { data: await y.data(), dims: [...y.type.layout.dimensions] };
    y.delete();
    return found;
  }
  async run() { return (await this.compute()).data; }
  async result() {
    const { data, dims } = await this.compute();
    return dims.length === 4 ? moveChannels(data, dims, false).data : data;
  }
  async release() { this.x.delete(); this.model.delete(); }
}

// Generates its WebAssembly in the page and always takes as many threads as there are processors.
// Arguments are consumed unless `ref`ed.
class JaxJs {
  /** @param {Options} options */
  constructor(options) { this.options = options; }
  /** @param {CaseInfo} info */
  async prepare(info) {
    if (this.options.threads !== navigator.hardwareConcurrency) {
      throw new Error("jax-js takes all processors");
    }
    const jax = "../peers/jax/";
    const { init, defaultDevice, jit, numpy } = await import(`${jax}index.js`);
    await init("wasm");
    defaultDevice("wasm");
    const { x } = await feedArrays(info.feeds);
    const { url, shape } = info.constants.w;
    this.x = numpy.array(x.data, { shape: x.dims });
    this.w = numpy.array(new Float32Array(await bytes(url)), { shape });
    this.compute = jit((/** @type {any} */ a, /** @type {any} */ b) => numpy.matmul(a, b));
  }
  async run() { return this.compute(this.x.ref, this.w.ref).data(); }
  async release() { this.x.dispose(); this.w.dispose(); }
}

/**
 * NCHW to NHWC (`last`), or back.
 * @param {Float32Array} data @param {number[]} dims @param {boolean} last
 */
function moveChannels(data, dims, last) {
  const [n, c, h, w] = last ? dims : [dims[0], dims[3], dims[1], dims[2]];
  const moved = new Float32Array(data.length);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < c; j++) {
      for (let k = 0; k < h * w; k++) {
        const [first, later] = [(i * c + j) * h * w + k, (i * h * w + k) * c + j];
        if (last) moved[later] = data[first];
        else moved[first] = data[later];
      }
    }
  }
  return { data: moved, dims: last ? [n, h, w, c] : [n, c, h, w] };
}

const RUNTIMES = /** @type {Record<string, any>} */ ({
  ours: Ours, ort: OrtWeb, "ort+capture": OrtCapture, tfjs: TfJs, litert: LiteRt,
  jax: JaxJs, ours_int8: OursInt8, ort_int8: OrtInt8,
});

/** @param {ArrayLike<number>} got @param {ArrayLike<number>} want */
function relativeError(got, want) {
  if (got.length !== want.length) return Infinity;
  let scale = 0, worst = 0;
  for (let i = 0; i < want.length; i++) {
    scale = Math.max(scale, Math.abs(want[i]));
    const d = Math.abs(got[i] - want[i]);
    if (!(d <= worst)) worst = d; // a NaN sticks
  }
  return worst / scale;
}

/** @param {number[]} values */
const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];
const pause = (/** @type {number} */ ms) => new Promise((done) => setTimeout(done, ms));
const SAVED_MS = 3500; // ours writes the weights to its cache some seconds after `create`
const WARM_MS = 3000; // a runtime's warm-up, at most

const FIRST_IN_FLIGHT = 20;

/**
 * Milliseconds per run; as many in flight as a turn's budget takes.
 * @param {any} runtime @param {Options} options
 */
async function timeOne(runtime, { budgetMs, inFlight: wanted = 0, least = 3 }) {
  const times = [];
  runtime.inFlight ??= Math.min(wanted, FIRST_IN_FLIGHT);
  const { inFlight } = runtime;
  const end = performance.now() + budgetMs;
  do {
    const start = performance.now();
    if (inFlight) await runtime.many(inFlight);
    else await runtime.run();
    times.push((performance.now() - start) / (inFlight || 1));
    runtime.recycle?.(); // what a loop over many inputs does with an output it has used
  } while (performance.now() < end || times.length < least);
  const ms = median(times);
  if (inFlight) runtime.inFlight = Math.max(1, Math.min(wanted, Math.ceil(budgetMs / ms)));
  return ms;
}

/**
 * Until turns no longer become quicker: engines optimise what has run for a while.
 * @param {any} runtime @param {Options} options
 */
async function warmUp(runtime, options) {
  const end = performance.now() + WARM_MS;
  for (let best = Infinity, ms; (ms = await timeOne(runtime, options)) < 0.95 * best; best = ms) {
    if (performance.now() > end) return;
  }
}

/**
 * Milliseconds of a run alone, its output in JavaScript's hands: what a first run compares with.
 * @param {any} runtime @param {number} budgetMs
 */
async function timeSingle(runtime, budgetMs) {
  const times = [];
  const end = performance.now() + budgetMs;
  do {
    const start = performance.now();
    await runtime.run();
    times.push(performance.now() - start);
    runtime.recycle?.();
  } while (performance.now() < end || times.length < 3);
  return median(times);
}

/**
 * Kernel launches of one run, whatever runtime makes them.
 * @param {any} runtime
 */
async function countDispatches(runtime) {
  const { prototype } = GPUComputePassEncoder;
  const { dispatchWorkgroups } = prototype;
  let count = 0;
  /** @this {GPUComputePassEncoder} @param {[number, number?, number?]} grid */
  prototype.dispatchWorkgroups = function (...grid) {
    count++;
    return dispatchWorkgroups.apply(this, grid);
  };
  await runtime.run();
  prototype.dispatchWorkgroups = dispatchWorkgroups;
  return count;
}

/** @param {CaseInfo} info @param {Options} options */
async function bench(info, options) {
  const begin = performance.now();
  const ready = /** @type {Record<string, any>} */ ({});
  const errors = /** @type {Record<string, string>} */ ({});
  const outputs = /** @type {Record<string, any>} */ ({});
  const created = /** @type {Record<string, number>} */ ({});
  const first = /** @type {Record<string, number>} */ ({});
  if (options.provider === "webgpu") {
    // Nobody's session pays for the browser's start of its GPU process.
    (await (await navigator.gpu?.requestAdapter())?.requestDevice())?.destroy();
  }
  for (const name of options.runtimes) {
    try {
      const runtime = new RUNTIMES[name](options);
      await runtime.prepare(info);
      if (runtime.created !== undefined) created[name] = runtime.created;
      const start = performance.now();
      outputs[name] = await (runtime.result ? runtime.result() : runtime.run());
      first[name] = performance.now() - start;
      ready[name] = runtime;
    } catch (error) {
      errors[name] = String(error);
    }
  }
  const deviation = /** @type {Record<string, number>} */ ({});
  const reference = new Float32Array(await bytes(info.expected));
  for (const name of Object.keys(ready)) deviation[name] = relativeError(outputs[name], reference);
  const dispatches = /** @type {Record<string, number>} */ ({});
  const profile = options.provider === "webgpu" ? await ready.ours?.profile() : undefined;
  const single = /** @type {Record<string, number>} */ ({});
  for (const [name, runtime] of Object.entries(ready)) {
    try {
      if (options.provider === "webgpu") dispatches[name] = await countDispatches(runtime);
      // Warm-up apart from timing, each alone: a GPU's driver compiles once, engines in stages.
      await (options.provider === "wasm" ? warmUp : timeOne)(runtime, options);
      single[name] = await timeSingle(runtime, options.budgetMs);
    } catch (error) {
      errors[name] = String(error);
      delete ready[name];
    }
  }
  const rounds = /** @type {Record<string, number[]>} */ ({});
  const machine = options.machine && (await Machine.start(options.machine, options.threads));
  if (machine) await pause(begin + SAVED_MS - performance.now());
  const stop = performance.now() + (options.capMs ?? Infinity);
  for (let round = 0; round < options.rounds; round++) {
    if (round >= 3 && performance.now() > stop) break;
    for (const [name, runtime] of Object.entries(ready)) {
      await pause(20); // lets the other runtime's idle threads go to sleep
      const turn = () => timeOne(runtime, options);
      (rounds[name] ??= []).push(await (machine ? machine.undisturbed(turn) : turn()));
    }
  }
  const device = ready.ours?.device;
  for (const runtime of Object.values(ready)) await runtime.release();
  machine?.stop();
  const disturbed = machine && { repeated: machine.repeated, gaveUp: machine.patienceMs <= 0 };
  return { rounds, disturbed, single, first, deviation, errors, device, created, profile, dispatches };
}

/** @type {any} */ (window).bench = bench;
