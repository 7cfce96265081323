// The WebGPU executor: the plan as a flat list of dispatches. Pipelines are made once, bind groups
// once per set of shapes; a run writes its inputs, submits one command buffer and reads its outputs.

import { align, evaluate } from "./dims.js";
import { DeviceError } from "./errors.js";
import { healthy } from "./gpu-check.js";
import { GpuFrame, callsOf } from "./gpu-frame.js";
import { GpuMemory, padded } from "./gpu-memory.js";
import { timePasses } from "./gpu-profile.js";
import { encode } from "./gpu-queue.js";
import { GpuTensor } from "./gpu-tensor.js";
import { follow, walk } from "./program.js";
import { outputBytes, trialFrames } from "./shapes.js";

/** @typedef {import("./bundle.js").Bundle} Bundle */
/** @typedef {import("./bundle.js").Manifest} Manifest */
/** @typedef {import("./bundle.js").GpuKernel} GpuKernel */
/** @typedef {import("./shapes.js").Frame} Frame */
/** @typedef {import("./wasm.js").Packed} Packed */
/** @typedef {import("./gpu-frame.js").Dispatch} Dispatch */

// Raised to what the adapter has: kernels are exported for the guaranteed minimum, but long
// sequences need large bindings, and tuned kernels may use more of the rest.
export const RAISED = /** @type {const} */ ([
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxStorageBuffersPerShaderStage",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupSizeX",
  "maxComputeWorkgroupSizeY",
  "maxComputeWorkgroupSizeZ",
]);

// Asked for where the adapter has them: profiles, and what tuned kernels may use.
const OPTIONAL = ["timestamp-query", "shader-f16", "subgroups"];

const SELF_TEST_MS = 1000; // after the first run
const FRAMES = 16; // sets of shapes that are kept prepared

/**
 * Names that variants may need, as `WgslVariant` in codegen/caps.py has them.
 * @param {GPUDevice | GPUAdapter | null | undefined} source
 */
export function offers(source) {
  const found = new Set(/** @type {Iterable<string>} */ (source?.features ?? []));
  const info = /** @type {any} */ (source && "info" in source ? source.info : source?.adapterInfo);
  if (!info) return found;
  if (info.isFallbackAdapter) found.add("emulated");
  if (info.subgroupMinSize === 32 && info.subgroupMaxSize === 32) found.add("subgroups-of-32");
  const limits = /** @type {GPUDevice | GPUAdapter} */ (source).limits;
  if (limits.maxComputeWorkgroupStorageSize >= 32768) found.add("workgroup-storage-32k");
  for (const { componentType, resultComponentType, M, N, K } of info.subgroupMatrixConfigs ?? []) {
    found.add(`matrix-${componentType}-${resultComponentType}-${M}x${N}x${K}`);
  }
  return found;
}

export class GpuHost {
  provider = "webgpu";
  threads = 0;
  variant = "wgsl";
  /** The bundle's file whose code runs, for tuned code to take its place. */
  codeFile = "";
  /** Tuned code is in use. */
  tuned = false;
  device = "";
  /** @type {GPUDevice | null} */
  gpuDevice = null;
  /** What a run at the smallest sizes takes. */
  trialMs = Infinity;
  /** Set when no further run is possible. @type {DeviceError | null} */
  dead = null;
  /** Set when the device is lost; the session may open another one. @type {DeviceError | null} */
  lost = null;
  /** Set when kernels of a family compute wrong numbers; another variant may do.
   * @type {DeviceError | null} */
  wrong = null;
  /** @type {Promise<import("./gpu-self-test.js").Wrong[]> | null} */
  #tested = null;
  #testSoon = false;

  /**
   * Asks for the adapter at once: that takes a while, and the manifest travels meanwhile.
   * @param {{device?: GPUDevice, warmup?: boolean, without?: string[]}} options `without`: variants
   *   that are not to be taken
   */
  constructor({ device, warmup = true, without = [] }) {
    this.without = without;
    /** One per kernel of the plan: the chosen variant's, or tuned ones. @type {GpuKernel[]} */
    this.kernels = [];
    /** Texts that the kernels' passes name by number. @type {string[]} */
    this.codes = [];
    /** Of the texts that are in use; numbered alike. @type {GPUComputePipeline[]} */
    this.pipelines = [];
    /** The variant's own, which tuned ones replace. @type {GpuKernel[]} */
    this.ownKernels = [];
    /** @type {string[]} */
    this.ownCodes = [];
    this.given = device;
    this.warmup = warmup;
    this.adapter = device ? null : navigator.gpu?.requestAdapter();
    /** @type {GPUBuffer[]} */
    this.slots = [];
    /** @type {GPUBuffer[]} */
    this.scratch = [];
    /** Buffer by offset: plans may name one weight twice. @type {Map<number, GPUBuffer>} */
    this.weights = new Map();
    /** @type {Map<string, GpuFrame>} */
    this.frames = new Map();
    /** The run before, where runs wait for each other. @type {Promise<unknown>} */
    this.tail = Promise.resolve();
  }

  /**
   * @param {Bundle} bundle
   * @param {import("./bundle.js").Unavailable[]} [unavailable]
   * @param {import("./kept.js").FindTuned} [tuned]
   */
  async load(bundle, unavailable, tuned) {
    const { manifest } = bundle;
    this.manifest = manifest;
    this.bundle = bundle;
    const variants = await this.#choose(manifest);
    bundle.expect([variants[0].file, ...manifest.weights.shards]);
    // Travels while the device opens, ahead of the weights: compiling takes longest.
    const first = bundle.shaders(variants[0]);
    first.catch(() => {});
    const device = await this.#open(variants[0].kernels);
    const weights = this.#loadWeights(device, bundle);
    weights.catch(() => {});
    await this.#takeFirst(device, variants, first, unavailable, tuned);
    const [trial] = this.warmup ? trialFrames(manifest) : [];
    // Drivers finish their work on a pipeline when it is first used; weights may still arrive.
    const start = performance.now();
    if (trial) await this.run(trial, []);
    this.trialMs = performance.now() - start;
    await weights;
    if (this.dead) throw this.dead;
    return this;
  }

  /**
   * The first of the variants that compiles and computes rightly.
   * @param {GPUDevice} device
   * @param {import("./bundle.js").GpuVariant[]} variants
   * @param {Promise<string[]>} first shaders of the first one
   * @param {import("./bundle.js").Unavailable[]} [unavailable]
   * @param {import("./kept.js").FindTuned} [tuned]
   */
  async #takeFirst(device, variants, first, unavailable, tuned) {
    for (const [i, variant] of variants.entries()) {
      const { name, check } = variant;
      const right = check ? healthy(device, check) : true;
      let reason = `the shaders "${name}" compute wrong numbers on this device`;
      try {
        const codes = i ? /** @type {Bundle} */ (this.bundle).shaders(variant) : first;
        await this.#take(variant, codes, unavailable, tuned);
        if (await right) return;
      } catch (error) {
        const last = i === variants.length - 1;
        if (last || this.lost || !(error instanceof DeviceError)) throw error;
        reason = error.message;
      }
      unavailable?.push({ feature: `wgsl-${name}`, reason });
    }
    throw noneIsRight();
  }

  /**
   * Compile a variant's kernels, with tuned ones among them where there are any.
   * @param {import("./bundle.js").GpuVariant} variant
   * @param {Promise<string[]>} codes
   * @param {import("./bundle.js").Unavailable[]} [unavailable]
   * @param {import("./kept.js").FindTuned} [tuned]
   */
  async #take(variant, codes, unavailable, tuned) {
    const { device } = this.#ready();
    this.chosen = variant;
    this.kernels = this.ownKernels = variant.kernels;
    this.variant = `wgsl-${variant.name}`;
    this.codeFile = variant.file;
    this.pipelines = [];
    const found = await tuned?.(variant.file, this.codeDevice);
    this.codes = this.ownCodes = await codes;
    if (found && this.#runs(found)) {
      const set = this.#with(found);
      try {
        await this.#compile(device, set);
        Object.assign(this, set);
        return;
      } catch (error) {
        if (this.lost) throw error;
        unavailable?.push({ feature: "tuned kernels", reason: String(error) });
      }
    }
    await this.#compile(device, this);
  }

  /**
   * The first variant whose needs the device meets, then those without a self-check.
   * @param {Manifest} manifest
   */
  async #choose({ webgpu: { variants } }) {
    const offered = offers(this.given ?? (await this.adapter));
    const left = variants.filter(({ name }) => !this.without.includes(name));
    const met = left.filter(({ needs }) => needs.every((name) => offered.has(name)));
    if (met.length) return [met[0], ...met.slice(1).filter(({ check }) => !check)];
    throw noneIsRight();
  }

  /** @param {GpuKernel[]} kernels */
  async #open(kernels) {
    const features = [...new Set(kernels.flatMap((kernel) => kernel.features))];
    const device = this.given ?? (await this.#request(features));
    const missing = features.filter((name) => !device.features.has(name));
    if (missing.length) throw lacks(missing);
    this.gpuDevice = device;
    this.memory = GpuMemory.of(device);
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
    const wanted = new Set([...features, ...OPTIONAL.filter((name) => adapter.features.has(name))]);
    const requiredLimits = Object.fromEntries(RAISED.map((name) => [name, adapter.limits[name]]));
    try {
      return await adapter.requestDevice({
        requiredFeatures: /** @type {GPUFeatureName[]} */ ([...wanted]),
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

  /** On what the code runs. */
  get codeDevice() {
    return this.device;
  }

  /** Whether this device has what tuned kernels use. @param {import("./kept.js").Tuned} tuned */
  #runs({ kernels = {} }) {
    const needed = Object.values(kernels).flatMap((kernel) => kernel.features);
    return needed.every((name) => this.gpuDevice?.features.has(name));
  }

  /**
   * The variant's kernels, some of them replaced; pipelines that exist are kept.
   * @param {import("./kept.js").Tuned} tuned
   */
  #with({ codes = [], kernels = {} }) {
    const first = this.ownCodes.length;
    const made = new Map(this.codes.map((code, i) => [code, this.pipelines[i]]));
    const all = [...this.ownCodes, ...codes];
    return {
      tuned: true,
      codes: all,
      pipelines: all.map((code) => /** @type {GPUComputePipeline} */ (made.get(code))),
      kernels: this.ownKernels.map((own, i) => {
        const tuned = kernels[i];
        if (!tuned) return own;
        return { ...tuned, passes: tuned.passes.map((p) => ({ ...p, code: first + p.code })) };
      }),
    };
  }

  /**
   * Take tuned kernels of the same plan into use. Runs go on with the ones before until the new
   * ones are compiled.
   * @param {import("./kept.js").Tuned} tuned
   */
  async swap(tuned) {
    const next = this.#with(tuned);
    await this.#compile(/** @type {GPUDevice} */ (this.gpuDevice), next);
    if (this.dead ?? this.lost) throw this.dead ?? this.lost;
    Object.assign(this, next);
    this.#forget();
  }

  /**
   * Every shader in use compiles at the same time; equal texts were exported once.
   * @param {GPUDevice} device
   * @param {{codes: string[], pipelines: GPUComputePipeline[], kernels: GpuKernel[]}} set
   */
  async #compile(device, { codes, pipelines, kernels }) {
    const used = new Set(kernels.flatMap(({ passes }) => passes.map(({ code }) => code)));
    await Promise.all(
      [...used].map(async (i) => {
        if (pipelines[i]) return;
        const module = device.createShaderModule({ code: codes[i] });
        try {
          pipelines[i] = await device.createComputePipelineAsync({
            layout: "auto",
            compute: { module, entryPoint: "main" },
          });
        } catch (cause) {
          if (this.lost) throw this.lost;
          const info = await module.getCompilationInfo();
          const kernel = kernels.findIndex((k) => k.passes.some((p) => p.code === i));
          const step = this.manifest?.webgpu.steps.find((s) => s.kernel === kernel);
          throw new DeviceError("a shader does not compile on this device", {
            where: `${this.variant}, shader ${i}${step ? ` (${step.label})` : ""}`,
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
    // Of a weight that the wasm module has whole, these steps may have parts.
    const { buffers, webgpu } = bundle.manifest;
    const read = new Set(webgpu.steps.flatMap(({ operands }) => operands));
    const spans = /** @type {import("./bundle.js").WeightBuffer[]} */ (
      buffers.filter((buffer, i) => "weight" in buffer && read.has(i))
    );
    const { weights } = this;
    const memory = GpuMemory.of(device);
    device.pushErrorScope("out-of-memory");
    try {
      for (const [i, buffer] of buffers.entries()) {
        if (!("weight" in buffer) || !read.has(i) || weights.has(buffer.weight)) continue;
        weights.set(buffer.weight, memory.buffer(buffer.bytes, `the weight of ${this.#user(i)}`));
      }
    } finally {
      const refused = device.popErrorScope();
      refused.then((error) => error && (this.dead ??= this.#noRoom(error, [])), () => {});
    }
    await bundle.weights((data, offset) => {
      const end = offset + data.length;
      for (const { weight, bytes } of spans) {
        // The part of this weight that lies in this block. Offsets are multiples of 16 bytes and
        // shards are cut at multiples of 4, which is all that writeBuffer asks for.
        const from = Math.max(weight, offset);
        const to = Math.min(weight + bytes, end);
        if (from >= to) continue;
        const buffer = /** @type {GPUBuffer} */ (weights.get(weight));
        memory.write(buffer, data.subarray(from - offset, to - offset), from - weight);
      }
    });
  }

  /**
   * The outputs' bytes, or the buffers that hold them. Several runs may be in flight: the queue
   * keeps them in order, and may not have submitted those whose outputs stay.
   * @template {boolean} [Stay=false]
   * @param {Frame} run
   * @param {(Packed | GpuTensor)[]} inputs
   * @param {Stay} [stay] leave the outputs on the GPU
   * @returns {Promise<Stay extends true ? GPUBuffer[] : ArrayBuffer[]>}
   */
  async run(run, inputs, stay) {
    if (this.dead ?? this.lost) throw this.dead ?? this.lost;
    const device = /** @type {GPUDevice} */ (this.gpuDevice);
    if (/** @type {Manifest} */ (this.manifest).program.length) {
      const result = this.tail.then(() => this.#followProgram(run, inputs, stay ?? false));
      this.tail = result.catch(() => {});
      return /** @type {any} */ (result);
    }
    const { queue } = this.#ready();
    const isNew = !this.frames.has(run.key);
    // Others see the buffers of these, or the device is asked about this run.
    const alone = isNew || inputs.some((input) => input instanceof GpuTensor && input.shared);
    if (alone) queue.submit();
    if (isNew) {
      device.pushErrorScope("out-of-memory");
      device.pushErrorScope("validation");
    }
    let results;
    let checked;
    try {
      results = /** @type {Promise<any>} */ (this.#encode(run, inputs, stay ?? false));
      if (alone) queue.submit();
    } finally {
      if (isNew) checked = this.#checkScopes(device, run);
      checked?.catch(() => {});
    }
    try {
      const [answer] = await Promise.all([results, checked]);
      this.#testLater();
      return answer;
    } catch (error) {
      // Reading back from a lost device fails a moment before the loss is announced.
      await Promise.race([device.lost, new Promise((resolve) => setTimeout(resolve, 100))]);
      // What the device says of a set of shapes explains whatever failed after it.
      const refused = await checked?.then(() => null, (reason) => reason);
      throw this.dead ?? this.lost ?? refused ?? error;
    }
  }

  /** Visitors do not wait for self-tests: the first answer comes before. */
  #testLater() {
    if (this.#testSoon) return;
    this.#testSoon = true;
    setTimeout(() => {
      if (!this.dead && !this.lost) this.selfTest().catch(() => {}); // a file that does not come
    }, SELF_TEST_MS);
  }

  /**
   * What this device computes wrongly of the families in use; it is tried once per device. Where
   * something is, no further run is possible.
   */
  selfTest() {
    return (this.#tested ??= this.#selfTest());
  }

  async #selfTest() {
    const { device, manifest } = this.#ready();
    const file = this.chosen?.tests;
    if (!file) return [];
    const { hasPassed, remember, wrongKernels } = await import("./gpu-self-test.js");
    const key = `${manifest.files[file]?.sha256} ${this.device}`;
    if (hasPassed(key)) return [];
    const tests = await /** @type {Bundle} */ (this.bundle).json(file);
    const wrong = await wrongKernels(device, tests);
    if (this.dead || this.lost) return [];
    if (!wrong.length) {
      remember(key);
      return [];
    }
    const [{ kernel, problem }] = wrong;
    const families = [...new Set(wrong.map(({ family }) => family))].join(", ");
    this.wrong = this.dead = new DeviceError(
      `this GPU's driver computes ${families} kernels wrongly: answers so far may be wrong`,
      {
        where: `self-test on ${this.device}, ${this.variant}, kernel ${kernel}`,
        got: problem,
        remedy: "Update the driver or the browser, or use the wasm provider.",
      },
    );
    console.error(String(this.wrong));
    return wrong;
  }

  /**
   * @param {GPUDevice} device
   * @param {Frame} run
   */
  async #checkScopes(device, run) {
    const [invalid, memory] = await Promise.all([device.popErrorScope(), device.popErrorScope()]);
    // A buffer that there was no memory for is also not valid to bind.
    if (memory) throw this.#noRoom(memory, run.slotBytes);
    if (!invalid) return;
    this.frames.delete(run.key);
    throw new DeviceError("the GPU refuses the plan", {
      where: "webgpu",
      got: invalid.message,
      remedy: "Use the wasm provider, and report the device and the model.",
    });
  }

  /**
   * Buffers that could not be made look like others: all are given up, so that a run that needs
   * less finds room.
   * @param {GPUError} error
   * @param {number[]} slotBytes
   */
  #noRoom(error, slotBytes) {
    const tensors = slotBytes.reduce((sum, bytes) => sum + bytes, 0);
    const scratch = this.scratch.reduce((sum, { size }) => sum + size, 0);
    const weights = this.#ready().manifest.weights.bytes;
    const { queue } = this.#ready();
    for (const buffer of [...this.slots.splice(0), ...this.scratch.splice(0)]) queue.destroy(buffer);
    this.#forget();
    return new DeviceError("the GPU has not enough memory", {
      where: "webgpu",
      got: `${error.message} (${weights + tensors + scratch} bytes are needed: ${weights} for ` +
        `weights, ${tensors} for tensors, ${scratch} for kernels)`,
      remedy: "Use smaller inputs, a bundle in f16, int8 or int4, or the wasm provider.",
    });
  }

  /**
   * Inputs that lie on the GPU and outputs that stay there are bound where they are: no copies.
   * @param {Frame} run
   * @param {(Packed | GpuTensor)[]} inputs
   * @param {boolean} stay
   * @returns {Promise<ArrayBuffer[] | GPUBuffer[]>}
   */
  #encode(run, inputs, stay) {
    const frame = this.#prepare(run);
    const { bound, parts } = this.#bind(run, inputs, stay);
    this.#ready().queue.dispatch(frame.dispatches(bound));
    return this.#finish(parts, stay);
  }

  /**
   * As `#encode`, for plans with a program. Runs wait for each other, since the host looks at what
   * lies in the slots between one submission and the next.
   * @param {Frame} run its `sizes` get what the program finds out
   * @param {(Packed | GpuTensor)[]} inputs
   * @param {boolean} stay
   */
  async #followProgram(run, inputs, stay) {
    if (this.dead ?? this.lost) throw this.dead ?? this.lost;
    const { device, memory, queue, manifest } = this.#ready();
    device.pushErrorScope("out-of-memory");
    this.#grow(this.slots, run.slotBytes, (i) => this.#content(i, run));
    const checked = device.popErrorScope();
    const { bound, parts } = this.#bind(run, inputs, stay);
    await follow(
      manifest.program,
      run.sizes,
      ([first, end]) => {
        queue.dispatch(this.#prepare(run, first, end).dispatches(bound));
        queue.submitSoon();
      },
      async (buffer) => {
        const [bytes] = await memory.read([{ buffer: this.#bufferOf(buffer), bytes: 4 }]);
        return new Int32Array(bytes, 0, 1)[0];
      },
    );
    const error = await checked;
    if (error) throw this.#noRoom(error, run.slotBytes);
    return this.#finish(parts, stay);
  }

  /**
   * Write the inputs; which buffers stand for slots, and where the outputs will lie.
   * @param {Frame} run
   * @param {(Packed | GpuTensor)[]} inputs
   * @param {boolean} stay
   */
  #bind(run, inputs, stay) {
    const { memory, manifest } = this.#ready();
    /** @type {Map<number, GPUBuffer>} */
    const bound = new Map();
    manifest.inputs.forEach((port, i) => {
      const entry = manifest.buffers[port.buffer];
      const given = inputs[i];
      if (given instanceof GpuTensor) {
        if ("slot" in entry) bound.set(entry.slot, GpuTensor.memory(given));
      } else if (given?.length) memory.write(this.#bufferOf(port.buffer), given);
    });
    const parts = manifest.outputs.map((port, i) => {
      const entry = manifest.buffers[port.buffer];
      const bytes = outputBytes(manifest, run, i);
      if (!stay) return { buffer: this.#bufferOf(port.buffer), bytes, copy: null };
      const buffer = memory.take(bytes);
      // An output that is a constant has no slot.
      if ("slot" in entry) bound.set(entry.slot, buffer);
      return { buffer, bytes, copy: "slot" in entry ? null : this.#bufferOf(port.buffer) };
    });
    return { bound, parts };
  }

  /**
   * @param {{buffer: GPUBuffer, bytes: number, copy: GPUBuffer | null}[]} parts
   * @param {boolean} stay
   * @returns {Promise<ArrayBuffer[] | GPUBuffer[]>}
   */
  #finish(parts, stay) {
    const { memory, queue } = this.#ready();
    if (!stay) return memory.read(parts);
    for (const { buffer, bytes, copy } of parts) {
      if (copy && bytes) queue.copy(copy, buffer, align(bytes, 4));
    }
    queue.submitSoon();
    return Promise.resolve(parts.map(({ buffer }) => buffer));
  }

  /** The first step that reads a buffer. @param {number} number of a buffer of the plan */
  #user(number) {
    const { steps } = this.#ready().manifest.webgpu;
    return steps.find(({ operands }) => operands.includes(number))?.label ?? "no step";
  }

  /**
   * The largest of what lies in a slot, for messages.
   * @param {number} slot
   * @param {Frame} run
   */
  #content(slot, { bufferBytes }) {
    const { buffers, inputs, webgpu } = this.#ready().manifest;
    const inside = [
      ...inputs.map(({ buffer, name }) => ({ buffer, what: `the input "${name}"` })),
      ...webgpu.steps.map(({ output, label }) => ({ buffer: output, what: `the result of ${label}` })),
    ].filter(({ buffer }) => {
      const entry = buffers[buffer];
      return "slot" in entry && entry.slot === slot;
    });
    inside.sort((a, b) => bufferBytes[b.buffer] - bufferBytes[a.buffer]);
    return inside[0]?.what ?? "a tensor";
  }

  /** @param {number} number of a buffer of the plan */
  #bufferOf(number) {
    const entry = /** @type {Manifest} */ (this.manifest).buffers[number];
    if ("slot" in entry) return this.slots[entry.slot];
    return /** @type {GPUBuffer} */ (this.weights.get(entry.weight));
  }

  /** What exists once the host is loaded. */
  #ready() {
    const device = /** @type {GPUDevice} */ (this.gpuDevice);
    const memory = /** @type {GpuMemory} */ (this.memory);
    return { device, memory, queue: memory.queue, manifest: /** @type {Manifest} */ (this.manifest) };
  }

  /**
   * Equal where the steps first .. end - 1 get the same arguments.
   * @param {Frame} run
   * @param {number} first
   * @param {number} end
   */
  #partKey(run, first, end) {
    return `${first}-${end}:${[...run.sizes].join(";")}`;
  }

  /**
   * @param {Frame} run
   * @param {number} [first] step, where only a part is played
   * @param {number} [end]
   */
  #prepare(run, first, end) {
    const { device, manifest } = this.#ready();
    const key = first === undefined ? run.key : this.#partKey(run, first, end ?? 0);
    const known = this.frames.get(key);
    if (known) return known;
    const calls = callsOf(manifest, this.kernels, run, first, end);
    this.#grow(this.slots, run.slotBytes, (i) => this.#content(i, run));
    for (const { kernel, names } of calls) {
      const sizes = kernel.scratch.map((dim) => evaluate(dim, names));
      this.#grow(this.scratch, sizes, () => "a kernel's scratch memory");
    }
    const { slots, scratch, weights, pipelines } = this;
    const runs = walk(manifest.program).filter((item) => "steps" in item).length || 1;
    if (this.frames.size >= FRAMES * runs) this.#forget();
    const made = new GpuFrame(device, manifest, run, calls, { pipelines, slots, scratch, weights });
    this.frames.set(key, made);
    return made;
  }

  /**
   * Milliseconds of a run: each step alone on the device, all of them in a row on the device, and
   * encoding and submitting them here.
   * @param {Frame} run
   * @param {(Packed | GpuTensor)[]} inputs
   * @param {number} repeats
   */
  async profile(run, inputs, repeats) {
    await this.run(run, inputs);
    const { device } = this.#ready();
    const dispatches = this.#prepare(run).own;
    /** @type {Map<number, Dispatch[]>} */
    const steps = new Map();
    for (const one of dispatches) steps.set(one.step, [...(steps.get(one.step) ?? []), one]);
    const times = await timePasses(device, [...steps.values()], repeats);
    const whole = await timePasses(device, Array(repeats).fill(dispatches), 1);
    const start = performance.now();
    for (let i = 0; i < repeats; i++) {
      const encoder = device.createCommandEncoder();
      const pass = encoder.beginComputePass();
      encode(pass, dispatches);
      pass.end();
      device.queue.submit([encoder.finish()]);
    }
    const hostMs = (performance.now() - start) / repeats;
    const deviceMs = [...whole].sort((a, b) => a - b)[whole.length >> 1];
    const stepMs = new Map([...steps.keys()].map((step, i) => [step, times[i]]));
    return { stepMs, deviceMs, hostMs, dispatches: dispatches.length };
  }

  /**
   * Make `buffers` at least as large as `sizes`. Bind groups name buffers, so they go with them.
   * @param {GPUBuffer[]} buffers
   * @param {number[]} sizes
   * @param {(number: number) => string} what
   */
  #grow(buffers, sizes, what) {
    sizes.forEach((bytes, i) => {
      if (buffers[i]?.size >= padded(bytes)) return;
      const larger = /** @type {GpuMemory} */ (this.memory).buffer(bytes, what(i));
      if (buffers[i]) this.#ready().queue.destroy(buffers[i]);
      buffers[i] = larger;
      this.#forget();
    });
  }

  #forget() {
    for (const made of this.frames.values()) made.release();
    this.frames.clear();
  }

  release() {
    this.dead ??= new DeviceError("the session has been released", { where: "webgpu" });
    this.#forget();
    const buffers = [...this.slots, ...this.scratch, ...this.weights.values()];
    for (const buffer of buffers) this.memory?.queue.destroy(buffer);
    if (this.given) return;
    this.memory?.release();
    this.gpuDevice?.destroy();
  }
}

const noneIsRight = () =>
  new DeviceError("no shaders of the bundle compute right numbers on this device", {
    where: "webgpu",
    remedy: "Update the GPU's driver, or use the wasm provider.",
  });

/** @param {string[]} features */
function lacks(features) {
  return new DeviceError("the GPU lacks features that the bundle's kernels use", {
    where: "webgpu",
    got: `no ${features.join(", ")}`,
    remedy: "Export the model without them, or use the wasm provider.",
  });
}
