// The WebGPU executor: the plan as a flat list of dispatches. Pipelines are made once, bind groups
// once per set of shapes; a run writes its inputs, submits one command buffer and reads its outputs.

import { align, evaluate } from "./dims.js";
import { DeviceError } from "./errors.js";
import { outputBytes, trialFrames } from "./shapes.js";

/** @typedef {import("./bundle.js").Bundle} Bundle */
/** @typedef {import("./bundle.js").Manifest} Manifest */
/** @typedef {import("./bundle.js").GpuKernel} GpuKernel */
/** @typedef {import("./shapes.js").Frame} Frame */
/** @typedef {import("./wasm.js").Packed} Packed */

/** @typedef {{pipeline: GPUComputePipeline, group: GPUBindGroup, grid: number[]}} Dispatch */
/** @typedef {{dispatches: Dispatch[], args: GPUBuffer | null}} Prepared */

// Raised to what the adapter has: kernels are exported for the guaranteed minimum, but long
// sequences need large bindings, and tuned kernels may use more of the rest.
const RAISED = /** @type {const} */ ([
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxStorageBuffersPerShaderStage",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupSizeX",
  "maxComputeWorkgroupSizeY",
  "maxComputeWorkgroupSizeZ",
]);

const UNIFORM_ALIGN = 256; // the largest alignment that a device may ask for
const SMALLEST = 16; // bytes of a buffer that holds nothing: a binding must not be empty
const FRAMES = 16; // sets of shapes that are kept prepared
const STAGING = 4; // read-back buffers that are kept

/**
 * Names that variants may need, as `WgslVariant` in codegen/caps.py has them.
 * @param {GPUDevice | GPUAdapter | null | undefined} source
 */
function offers(source) {
  const found = new Set(/** @type {Iterable<string>} */ (source?.features ?? []));
  const info = /** @type {any} */ (source && "info" in source ? source.info : source?.adapterInfo);
  if (!info) return found;
  if (info.isFallbackAdapter) found.add("emulated");
  if (info.subgroupMinSize === 32 && info.subgroupMaxSize === 32) found.add("subgroups-of-32");
  for (const { componentType, resultComponentType, M, N, K } of info.subgroupMatrixConfigs ?? []) {
    found.add(`matrix-${componentType}-${resultComponentType}-${M}x${N}x${K}`);
  }
  return found;
}

export class GpuHost {
  provider = "webgpu";
  threads = 0;
  variant = "wgsl";
  device = "";
  /** @type {GPUDevice | null} */
  gpuDevice = null;
  /** What a run at the smallest sizes takes. */
  trialMs = Infinity;
  /** Set when no further run is possible. @type {DeviceError | null} */
  dead = null;
  /** Set when the device is lost; the session may open another one. @type {DeviceError | null} */
  lost = null;

  /**
   * Asks for the adapter at once: that takes a while, and the manifest travels meanwhile.
   * @param {{device?: GPUDevice, warmup?: boolean}} options
   */
  constructor({ device, warmup = true }) {
    /** The chosen variant's, one per kernel of the plan. @type {GpuKernel[]} */
    this.kernels = [];
    this.given = device;
    this.warmup = warmup;
    this.adapter = device ? null : navigator.gpu?.requestAdapter();
    /** @type {GPUBuffer[]} */
    this.slots = [];
    /** @type {GPUBuffer[]} */
    this.scratch = [];
    /** @type {GPUBuffer[]} */
    this.staging = [];
    /** @type {Map<string, Prepared>} */
    this.frames = new Map();
  }

  /** @param {Bundle} bundle */
  async load(bundle) {
    const { manifest } = bundle;
    this.manifest = manifest;
    const chosen = await this.#choose(manifest);
    this.kernels = chosen.kernels;
    this.variant = `wgsl-${chosen.name}`;
    const device = await this.#open(chosen.kernels);
    bundle.expect([chosen.file, ...manifest.weights.shards]);
    const weights = this.#loadWeights(device, bundle);
    weights.catch(() => {});
    const codes = await bundle.json(chosen.file);
    this.pipelines = await this.#compile(device, codes, manifest);
    const [trial] = this.warmup ? trialFrames(manifest) : [];
    // Drivers finish their work on a pipeline when it is first used; weights may still arrive.
    const start = performance.now();
    if (trial) await this.run(trial, []);
    this.trialMs = performance.now() - start;
    await weights;
    return this;
  }

  /**
   * The first variant whose needs the device meets.
   * @param {Manifest} manifest
   */
  async #choose({ webgpu: { variants } }) {
    const offered = offers(this.given ?? (await this.adapter));
    const met = variants.find(({ needs }) => needs.every((name) => offered.has(name)));
    return met ?? variants[variants.length - 1];
  }

  /** @param {GpuKernel[]} kernels */
  async #open(kernels) {
    const features = [...new Set(kernels.flatMap((kernel) => kernel.features))];
    const device = this.given ?? (await this.#request(features));
    const missing = features.filter((name) => !device.features.has(name));
    if (missing.length) throw lacks(missing);
    this.gpuDevice = device;
    const { vendor, architecture, description } = device.adapterInfo ?? {};
    this.device = [vendor, architecture, description].filter(Boolean).join(" ") || "WebGPU";
    device.lost.then(({ reason, message }) => {
      this.lost = new DeviceError("the GPU device was lost", {
        where: "webgpu",
        got: message || reason,
        remedy: this.given
          ? "Create the session again with a new device."
          : "Create the session again.",
      });
    });
    return device;
  }

  /** @param {string[]} features */
  async #request(features) {
    if (!navigator.gpu) {
      throw new DeviceError("this browser offers no WebGPU to this page", {
        where: "webgpu",
        remedy: globalThis.isSecureContext
          ? "Use a browser with WebGPU, or the wasm provider."
          : "Serve the page over HTTPS.",
      });
    }
    const adapter = await this.adapter;
    if (!adapter) {
      throw new DeviceError("the browser found no GPU that it can use", {
        where: "webgpu",
        remedy: "Check that hardware acceleration is on, or use the wasm provider.",
      });
    }
    const missing = features.filter((name) => !adapter.features.has(name));
    if (missing.length) throw lacks(missing);
    const requiredLimits = Object.fromEntries(RAISED.map((name) => [name, adapter.limits[name]]));
    try {
      return await adapter.requestDevice({
        requiredFeatures: /** @type {GPUFeatureName[]} */ (features),
        requiredLimits,
      });
    } catch (cause) {
      throw new DeviceError("the browser refuses the GPU device", {
        where: "webgpu",
        got: cause,
        remedy: "Restart the browser, or use the wasm provider.",
        cause,
      });
    }
  }

  /**
   * Every shader compiles at the same time; equal texts were exported once.
   * @param {GPUDevice} device
   * @param {string[]} codes
   * @param {Manifest} manifest
   * @returns {Promise<GPUComputePipeline[]>}
   */
  #compile(device, codes, manifest) {
    return Promise.all(
      codes.map(async (code, i) => {
        const module = device.createShaderModule({ code });
        try {
          return await device.createComputePipelineAsync({
            layout: "auto",
            compute: { module, entryPoint: "main" },
          });
        } catch (cause) {
          if (this.lost) throw this.lost;
          const info = await module.getCompilationInfo();
          const kernel = this.kernels.findIndex((k) => k.passes.some((p) => p.code === i));
          const step = manifest.steps.find((s) => s.kernel === kernel);
          throw new DeviceError("a shader does not compile on this device", {
            where: `webgpu, shader ${i}${step ? ` (${step.label})` : ""}`,
            got: info.messages.map((m) => `line ${m.lineNum}: ${m.message}`).join("; ") || cause,
            remedy: "Use the wasm provider, and report the device and the model.",
            cause,
          });
        }
      }),
    );
  }

  /**
   * @param {GPUDevice} device
   * @param {Bundle} bundle
   */
  async #loadWeights(device, bundle) {
    const spans = /** @type {import("./bundle.js").WeightBuffer[]} */ (
      bundle.manifest.buffers.filter((buffer) => "weight" in buffer)
    );
    /** Buffer by offset: plans may name one weight twice. @type {Map<number, GPUBuffer>} */
    this.weights = new Map();
    for (const { weight, bytes } of spans) {
      if (!this.weights.has(weight)) this.weights.set(weight, this.#buffer(bytes, "a weight"));
    }
    const { weights } = this;
    await bundle.weights((data, offset) => {
      const end = offset + data.length;
      for (const { weight, bytes } of spans) {
        // The part of this weight that lies in this shard. Offsets are multiples of 256 bytes and
        // shards are cut at multiples of 4, which is all that writeBuffer asks for.
        const from = Math.max(weight, offset);
        const to = Math.min(weight + bytes, end);
        if (from >= to) continue;
        const buffer = /** @type {GPUBuffer} */ (weights.get(weight));
        write(device, buffer, data.subarray(from - offset, to - offset), from - weight);
      }
    });
  }

  /**
   * @param {number} bytes
   * @param {string} what for messages
   */
  #buffer(bytes, what) {
    const device = /** @type {GPUDevice} */ (this.gpuDevice);
    const { maxBufferSize, maxStorageBufferBindingSize } = device.limits;
    const size = align(Math.max(bytes, SMALLEST), SMALLEST);
    if (size > maxBufferSize || size > maxStorageBufferBindingSize) {
      throw new DeviceError(`${what} is larger than this device binds`, {
        where: "webgpu",
        got: `${size} bytes`,
        expected: `at most ${Math.min(maxBufferSize, maxStorageBufferBindingSize)} bytes`,
        remedy: "Use smaller inputs or the wasm provider.",
      });
    }
    const { STORAGE, COPY_DST, COPY_SRC } = GPUBufferUsage;
    return device.createBuffer({ size, usage: STORAGE | COPY_DST | COPY_SRC });
  }

  /**
   * The outputs' bytes. Several runs may be in flight: the queue keeps them in order.
   * @param {Frame} run
   * @param {Packed[]} inputs
   * @returns {Promise<ArrayBuffer[]>}
   */
  async run(run, inputs) {
    if (this.dead ?? this.lost) throw this.dead ?? this.lost;
    const device = /** @type {GPUDevice} */ (this.gpuDevice);
    const isNew = !this.frames.has(run.key);
    if (isNew) {
      device.pushErrorScope("out-of-memory");
      device.pushErrorScope("validation");
    }
    let results;
    let checked;
    try {
      results = this.#submit(device, run, inputs);
    } finally {
      if (isNew) checked = this.#checkScopes(device, run);
      checked?.catch(() => {});
    }
    try {
      const [answer] = await Promise.all([results, checked]);
      return answer;
    } catch (error) {
      // Reading back from a lost device fails a moment before the loss is announced.
      await Promise.race([device.lost, new Promise((resolve) => setTimeout(resolve, 100))]);
      throw this.dead ?? this.lost ?? error;
    }
  }

  /**
   * @param {GPUDevice} device
   * @param {Frame} run
   */
  async #checkScopes(device, run) {
    const [invalid, memory] = await Promise.all([device.popErrorScope(), device.popErrorScope()]);
    const error = invalid ?? memory;
    if (!error) return;
    this.frames.delete(run.key);
    throw new DeviceError(invalid ? "the GPU refuses the plan" : "the GPU has not enough memory", {
      where: "webgpu",
      got: error.message,
      remedy: invalid
        ? "Use the wasm provider, and report the device and the model."
        : "Use smaller inputs or the wasm provider.",
    });
  }

  /**
   * @param {GPUDevice} device
   * @param {Frame} run
   * @param {Packed[]} inputs
   */
  #submit(device, run, inputs) {
    const manifest = /** @type {Manifest} */ (this.manifest);
    const { dispatches } = this.#prepare(device, run);
    manifest.inputs.forEach((port, i) => {
      if (inputs[i]?.length) write(device, this.#bufferOf(port.buffer), inputs[i], 0);
    });
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    for (const { pipeline, group, grid } of dispatches) {
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, group);
      pass.dispatchWorkgroups(grid[0], grid[1], grid[2]);
    }
    pass.end();
    const sizes = manifest.outputs.map((_, i) => outputBytes(manifest, run, i));
    const total = sizes.reduce((sum, bytes) => sum + align(bytes, 8), 0);
    if (total === 0) {
      device.queue.submit([encoder.finish()]);
      return Promise.resolve(sizes.map(() => new ArrayBuffer(0)));
    }
    const staging = this.#takeStaging(device, total);
    let offset = 0;
    manifest.outputs.forEach((port, i) => {
      const bytes = align(sizes[i], 4);
      if (bytes) encoder.copyBufferToBuffer(this.#bufferOf(port.buffer), 0, staging, offset, bytes);
      offset += align(sizes[i], 8); // mapped ranges begin at multiples of 8
    });
    device.queue.submit([encoder.finish()]);
    return this.#readBack(staging, total, sizes);
  }

  /**
   * @param {GPUBuffer} staging
   * @param {number} total
   * @param {number[]} sizes
   */
  async #readBack(staging, total, sizes) {
    await staging.mapAsync(GPUMapMode.READ, 0, total);
    const mapped = staging.getMappedRange(0, total);
    let offset = 0;
    const results = sizes.map((bytes) => {
      const copy = mapped.slice(offset, offset + bytes);
      offset += align(bytes, 8);
      return copy;
    });
    staging.unmap();
    if (this.staging.length < STAGING) this.staging.push(staging);
    else staging.destroy();
    return results;
  }

  /**
   * A read-back buffer that no other run is using.
   * @param {GPUDevice} device
   * @param {number} bytes
   */
  #takeStaging(device, bytes) {
    const i = this.staging.findIndex((buffer) => buffer.size >= bytes);
    if (i >= 0) return this.staging.splice(i, 1)[0];
    const { MAP_READ, COPY_DST } = GPUBufferUsage;
    return device.createBuffer({ size: align(bytes, 256), usage: MAP_READ | COPY_DST });
  }

  /** @param {number} number of a buffer of the plan */
  #bufferOf(number) {
    const entry = /** @type {Manifest} */ (this.manifest).buffers[number];
    if ("slot" in entry) return this.slots[entry.slot];
    return /** @type {GPUBuffer} */ (this.weights?.get(entry.weight));
  }

  /**
   * @param {GPUDevice} device
   * @param {Frame} run
   */
  #prepare(device, run) {
    const manifest = /** @type {Manifest} */ (this.manifest);
    const known = this.frames.get(run.key);
    if (known) return known;
    const calls = manifest.steps.map((step) => {
      const kernel = this.kernels[step.kernel];
      const args = step.args.map((dim) => evaluate(dim, run.sizes));
      return { step, kernel, args, names: new Map(args.map((value, i) => [`a${i}`, value])) };
    });

    this.#grow(this.slots, run.slotBytes, "a tensor");
    for (const { kernel, names } of calls) {
      const sizes = kernel.scratch.map((dim) => evaluate(dim, names));
      this.#grow(this.scratch, sizes, "a kernel's scratch memory");
    }
    const slices = new Slices();
    const offsets = calls.map(({ args }) => slices.add(args));
    const args = slices.upload(device);
    const dispatches = calls.flatMap(({ step, kernel, args: values, names }, i) =>
      kernel.passes.map((pass) => {
        const pipeline = /** @type {GPUComputePipeline[]} */ (this.pipelines)[pass.code];
        const resource = (/** @type {[string, number]} */ [role, index]) => {
          if (role === "args") {
            const size = align(values.length * 4, 16);
            return { buffer: /** @type {GPUBuffer} */ (args), offset: offsets[i], size };
          }
          if (role === "scratch") return { buffer: this.scratch[index] };
          const number = role === "output" ? step.output : step.operands[index];
          const size = align(Math.max(run.bufferBytes[number], SMALLEST), SMALLEST);
          return { buffer: this.#bufferOf(number), size };
        };
        const group = device.createBindGroup({
          layout: pipeline.getBindGroupLayout(0),
          entries: pass.bindings.map((b, binding) => ({ binding, resource: resource(b) })),
        });
        return { pipeline, group, grid: pass.grid.map((dim) => evaluate(dim, names)) };
      }),
    );
    if (this.frames.size >= FRAMES) this.#forget();
    const prepared = { dispatches, args };
    this.frames.set(run.key, prepared);
    return prepared;
  }

  /**
   * Make `buffers` at least as large as `sizes`. Bind groups name buffers, so they go with them.
   * @param {GPUBuffer[]} buffers
   * @param {number[]} sizes
   * @param {string} what
   */
  #grow(buffers, sizes, what) {
    sizes.forEach((bytes, i) => {
      if (buffers[i]?.size >= Math.max(bytes, SMALLEST)) return;
      const larger = this.#buffer(bytes, what);
      buffers[i]?.destroy(); // takes effect after the work that was submitted
      buffers[i] = larger;
      this.#forget();
    });
  }

  #forget() {
    for (const { args } of this.frames.values()) args?.destroy();
    this.frames.clear();
  }

  release() {
    this.dead ??= new DeviceError("the session has been released", { where: "webgpu" });
    this.#forget();
    const weights = [...(this.weights?.values() ?? [])];
    for (const buffer of [...this.slots, ...this.scratch, ...this.staging, ...weights]) {
      buffer.destroy();
    }
    if (this.given) return;
    this.gpuDevice?.destroy();
  }
}

/** The arguments of all steps, each in its slice of one uniform buffer; equal ones share a slice. */
class Slices {
  constructor() {
    /** @type {Map<string, {offset: number, args: number[]}>} */
    this.known = new Map();
    this.end = 0;
  }

  /** @param {number[]} args @returns {number} where the slice begins */
  add(args) {
    const key = args.join(",");
    const slice = this.known.get(key) ?? { offset: this.end, args };
    if (!this.known.has(key)) {
      this.known.set(key, slice);
      this.end += align(Math.max(args.length, 1) * 4, UNIFORM_ALIGN);
    }
    return slice.offset;
  }

  /** @param {GPUDevice} device */
  upload(device) {
    if (!this.end) return null;
    const words = new Uint32Array(this.end / 4);
    for (const { offset, args } of this.known.values()) words.set(args, offset / 4);
    const { UNIFORM, COPY_DST } = GPUBufferUsage;
    const buffer = device.createBuffer({ size: this.end, usage: UNIFORM | COPY_DST });
    device.queue.writeBuffer(buffer, 0, words);
    return buffer;
  }
}

/**
 * @param {GPUDevice} device
 * @param {GPUBuffer} buffer
 * @param {Packed | Uint8Array} data
 * @param {number} offset
 */
function write(device, buffer, data, offset) {
  if (data.byteLength % 4) {
    // Whole words only: an odd number of f16 elements is followed by padding.
    const padded = new Uint8Array(align(data.byteLength, 4));
    padded.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    data = padded;
  }
  device.queue.writeBuffer(buffer, offset, /** @type {any} */ (data));
}

/** @param {string[]} features */
function lacks(features) {
  return new DeviceError("the GPU lacks features that the bundle's kernels use", {
    where: "webgpu",
    got: `no ${features.join(", ")}`,
    remedy: "Export the model without them, or use the wasm provider.",
  });
}
