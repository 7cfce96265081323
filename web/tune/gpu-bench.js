// Measures WGSL kernels on a device of its own: what a candidate breaks is not the page's.

import { align } from "../dims.js";
import { block, difference } from "./values.js";

/** @typedef {import("./values.js").Extent} Extent */
/** @typedef {import("./wasm-bench.js").LoadRequest} LoadRequest */
/** @typedef {import("./wasm-bench.js").Sample} Sample */
/** @typedef {{code: string, bindings: [string, number][], grid: number[]}} Pass */
/** @typedef {{pipeline: GPUComputePipeline, group: GPUBindGroup, grid: number[]}} Dispatch */

const SMALLEST = 16;
const SAMPLES = 2; // of one request: the tuner compares pairs

export class GpuBench {
  /** @type {GPUDevice | null} */
  #gpu = null;
  /** @type {GPUBuffer[]} */
  #buffers = [];
  /** @type {GPUBuffer[]} */
  #scratch = [];
  /** @type {GPUBuffer | null} */
  #args = null;
  /** @type {Map<number, Dispatch[]>} */
  #made = new Map();
  /** Compiled ahead, pass by pass. @type {Map<number, Promise<GPUComputePipeline>[]>} */
  #compiled = new Map();
  /** @type {GPUBuffer | null} */
  #kept = null;
  /** @type {LoadRequest} */
  #job = { operands: [], output: ["f32", 0], args: [], tolerance: 0 };
  /** @type {ArrayBuffer | null} */
  #got = null;
  /** @type {ArrayBuffer | null} */
  #want = null;
  /** @type {{set: GPUQuerySet, resolved: GPUBuffer, read: GPUBuffer} | null} */
  #clock = null;

  /** @param {{features: string[], limits: Record<string, number>}} request of the page's device */
  async open({ features, limits }) {
    const adapter = await navigator.gpu?.requestAdapter();
    if (!adapter) throw new Error("the browser gives a worker no GPU");
    const timed = adapter.features.has("timestamp-query");
    const all = timed ? [...new Set([...features, "timestamp-query"])] : features;
    const device = await adapter.requestDevice({
      requiredFeatures: /** @type {GPUFeatureName[]} */ (all),
      requiredLimits: limits,
    });
    device.lost.then(() => postMessage({ lost: true }));
    device.onuncapturederror = (event) => event.preventDefault();
    this.#gpu = device;
    if (!timed) return;
    const { QUERY_RESOLVE, COPY_SRC, COPY_DST, MAP_READ } = GPUBufferUsage;
    this.#clock = {
      set: device.createQuerySet({ type: "timestamp", count: 2 * SAMPLES }),
      resolved: device.createBuffer({ size: 16 * SAMPLES, usage: QUERY_RESOLVE | COPY_SRC }),
      read: device.createBuffer({ size: 16 * SAMPLES, usage: COPY_DST | MAP_READ }),
    };
  }

  get #device() {
    return /** @type {GPUDevice} */ (this.#gpu);
  }

  /** @param {LoadRequest} job */
  async load(job) {
    for (const buffer of [...this.#buffers, ...this.#scratch]) buffer.destroy();
    this.#args?.destroy();
    [this.#buffers, this.#scratch, this.#args] = [[], [], null];
    this.#made.clear();
    this.#compiled.clear();
    this.#job = job;
    this.#want = this.#got = null;
    await this.#watched(() => {
      for (const [storage, bytes] of job.operands) {
        const buffer = this.#buffer(bytes);
        const values = block(storage);
        for (let at = 0; at < bytes; at += values.length & ~3) {
          const piece = values.subarray(0, Math.min(values.length & ~3, align(bytes - at, 4)));
          this.#device.queue.writeBuffer(buffer, at, piece);
        }
        this.#buffers.push(buffer);
      }
      // A second output is as large as the first, or as what it is made from.
      const sizes = [job.output, ...job.operands].map(([, bytes]) => bytes);
      this.#kept = this.#buffer(Math.max(...sizes));
      this.#scratch.push(this.#kept);
      this.#buffers.push(this.#buffer(job.output[1]));
      if (!job.args.length) return;
      const words = new Uint32Array(align(job.args.length, 4));
      words.set(job.args);
      const { UNIFORM, COPY_DST } = GPUBufferUsage;
      this.#args = this.#device.createBuffer({ size: words.byteLength, usage: UNIFORM | COPY_DST });
      this.#device.queue.writeBuffer(this.#args, 0, words);
    });
  }

  /** @param {number} bytes */
  #buffer(bytes) {
    const { STORAGE, COPY_SRC, COPY_DST } = GPUBufferUsage;
    const size = align(Math.max(bytes, SMALLEST), SMALLEST);
    return this.#device.createBuffer({ size, usage: STORAGE | COPY_SRC | COPY_DST });
  }

  /**
   * What `begin` begins; rejects with what the device refuses of it. Error scopes are one stack for
   * all that happens on a device, so these are closed before anything else gets a turn.
   * @template T
   * @param {() => T | Promise<T>} begin
   * @returns {Promise<T>}
   */
  async #watched(begin) {
    const device = this.#device;
    device.pushErrorScope("out-of-memory");
    device.pushErrorScope("validation");
    const begun = (async () => begin())();
    begun.catch(() => {});
    const popped = [device.popErrorScope(), device.popErrorScope()];
    const error = (await Promise.all(popped)).find((found) => found !== null);
    if (error) throw new Error(error.message);
    return begun;
  }

  /**
   * Drivers compile several at a time. Done when all are: what is wrong with one shows in `make`.
   * @param {{codes: [number, {passes: Pass[]}][]}} request
   */
  async compile({ codes }) {
    this.#compiled.clear();
    for (const [number, { passes }] of codes) {
      this.#compiled.set(number, passes.map((pass) => this.#pipeline(pass)));
    }
    await Promise.allSettled([...this.#compiled.values()].flat());
  }

  /**
   * @param {{number: number, code: {passes: Pass[], scratch: number[]}}} request
   */
  async make({ number, code }) {
    const ahead = this.#compiled.get(number);
    const compile = () => Promise.all(code.passes.map((pass) => this.#pipeline(pass)));
    const pipelines = await (ahead ? Promise.all(ahead) : this.#watched(compile));
    const made = await this.#watched(() => {
      const scratch = code.scratch.map((bytes) => this.#buffer(bytes));
      this.#scratch.push(...scratch);
      return code.passes.map((pass, i) => this.#dispatch(pipelines[i], pass, scratch));
    });
    this.#made.set(number, made);
    const output = /** @type {GPUBuffer} */ (this.#buffers.at(-1));
    this.#device.queue.writeBuffer(output, 0, new Uint8Array(output.size).fill(0x3f));
  }

  /** @param {Pass} pass */
  #pipeline({ code }) {
    const module = this.#device.createShaderModule({ code });
    const compute = { module, entryPoint: "main" };
    return this.#device.createComputePipelineAsync({ layout: "auto", compute });
  }

  /**
   * @param {GPUComputePipeline} pipeline
   * @param {Pass} pass
   * @param {GPUBuffer[]} scratch
   * @returns {Dispatch}
   */
  #dispatch(pipeline, { bindings, grid }, scratch) {
    const buffer = (/** @type {[string, number]} */ [role, index]) => {
      if (role === "args") return /** @type {GPUBuffer} */ (this.#args);
      if (role === "scratch") return scratch[index];
      if (role === "kept") return /** @type {GPUBuffer} */ (this.#kept);
      return /** @type {GPUBuffer} */ (this.#buffers.at(role === "output" ? -1 : index));
    };
    const entries = bindings.map((b, binding) => ({ binding, resource: { buffer: buffer(b) } }));
    const group = this.#device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries });
    return { pipeline, group, grid };
  }

  /**
   * @param {number} number
   * @param {number} count
   * @param {GPUComputePassTimestampWrites} [timestampWrites]
   */
  #encode(number, count, timestampWrites) {
    const encoder = this.#device.createCommandEncoder();
    const pass = encoder.beginComputePass(timestampWrites ? { timestampWrites } : {});
    for (let i = 0; i < count; i++) {
      for (const { pipeline, group, grid } of this.#made.get(number) ?? []) {
        pass.setPipeline(pipeline);
        pass.setBindGroup(0, group);
        pass.dispatchWorkgroups(grid[0], grid[1], grid[2]);
      }
    }
    pass.end();
    return encoder;
  }

  /** The first run. True: it is done. @param {{number: number}} request */
  async run({ number }) {
    const { COPY_DST, MAP_READ } = GPUBufferUsage;
    const output = /** @type {GPUBuffer} */ (this.#buffers.at(-1));
    await this.#watched(async () => {
      const read = this.#device.createBuffer({ size: output.size, usage: COPY_DST | MAP_READ });
      const encoder = this.#encode(number, 1);
      encoder.copyBufferToBuffer(output, 0, read, 0, output.size);
      this.#device.queue.submit([encoder.finish()]);
      await read.mapAsync(GPUMapMode.READ);
      this.#got = read.getMappedRange().slice(0, this.#job.output[1]);
      read.destroy();
    });
    return true;
  }

  /** What is wrong with the candidate's output. @param {{number: number}} request */
  verify({ number }) {
    const got = this.#got;
    if (number === 0) this.#want = got;
    else if (this.#want && got) {
      return difference(got, this.#want, this.#job.output[0], this.#job.tolerance);
    }
    return null;
  }

  /** Milliseconds of each sample's runs. @param {{samples: Sample[]}} request */
  async time({ samples }) {
    const clock = this.#clock;
    if (!clock) {
      const found = [];
      for (const [number, count] of samples) {
        const start = performance.now();
        this.#device.queue.submit([this.#encode(number, count).finish()]);
        await this.#device.queue.onSubmittedWorkDone();
        found.push(performance.now() - start);
      }
      return found;
    }
    // One round trip for all: it takes longer than a sample.
    const { set, resolved, read } = clock;
    const commands = samples.map(([number, count], i) => {
      const writes = {
        querySet: set,
        beginningOfPassWriteIndex: 2 * i,
        endOfPassWriteIndex: 2 * i + 1,
      };
      return this.#encode(number, count, writes).finish();
    });
    const encoder = this.#device.createCommandEncoder();
    encoder.resolveQuerySet(set, 0, 2 * samples.length, resolved, 0);
    encoder.copyBufferToBuffer(resolved, 0, read, 0, 16 * samples.length);
    this.#device.queue.submit([...commands, encoder.finish()]);
    await read.mapAsync(GPUMapMode.READ);
    const at = new BigUint64Array(read.getMappedRange().slice(0));
    read.unmap();
    return samples.map((_, i) => Number(at[2 * i + 1] - at[2 * i]) / 1e6);
  }
}
