// One set of shapes, ready to encode: every dispatch with its pipeline, grid and bind group.

import { align, evaluate } from "./dims.js";
import { padded } from "./gpu-memory.js";
import { GpuQueue } from "./gpu-queue.js";

/** @typedef {import("./bundle.js").Manifest} Manifest */
/** @typedef {import("./bundle.js").GpuKernel} GpuKernel */
/** @typedef {import("./shapes.js").Frame} Frame */
/** @typedef {{pipeline: GPUComputePipeline, group: GPUBindGroup, grid: number[], step: number}} Dispatch */
/** @typedef {{slot: number, size: number} | {resource: GPUBufferBinding}} Binding */
/** A caller's buffer in place of a slot's. @typedef {Map<number, GPUBuffer>} Bound */
/** @typedef {{step: import("./bundle.js").Step, kernel: GpuKernel, args: number[],
 *   names: Map<string, number>}} Call */

const UNIFORM_ALIGN = 256; // the largest alignment that a device may ask for
const BINDINGS = 64; // sets of callers' buffers whose bind groups are kept

/**
 * The plan's kernel calls with their arguments.
 * @param {Manifest} manifest
 * @param {GpuKernel[]} kernels
 * @param {Frame} run
 * @param {number} [first] of the steps
 * @param {number} [end]
 * @returns {Call[]}
 */
export function callsOf(manifest, kernels, run, first = 0, end = manifest.webgpu.steps.length) {
  return manifest.webgpu.steps.slice(first, end).map((step) => {
    const args = step.args.map((dim) => evaluate(dim, run.sizes));
    const names = new Map(args.map((value, i) => [`a${i}`, value]));
    return { step, kernel: kernels[step.kernel], args, names };
  });
}

export class GpuFrame {
  /**
   * @param {GPUDevice} device
   * @param {Manifest} manifest
   * @param {Frame} run
   * @param {Call[]} calls
   * @param {{pipelines: GPUComputePipeline[], slots: GPUBuffer[], scratch: GPUBuffer[],
   *   weights: Map<number, GPUBuffer>}} made
   */
  constructor(device, manifest, run, calls, made) {
    this.device = device;
    this.slots = made.slots;
    const slices = new Slices();
    const offsets = calls.map(({ args }) => slices.add(args));
    this.args = slices.upload(device);
    /** @type {{pipeline: GPUComputePipeline, grid: number[], step: number, bindings: Binding[]}[]} */
    this.passes = calls.flatMap(({ step, kernel, args, names }, number) =>
      kernel.passes.map((pass) => ({
        pipeline: made.pipelines[pass.code],
        grid: pass.grid.map((dim) => evaluate(dim, names)),
        step: number,
        bindings: pass.bindings.map(([role, index]) => {
          if (role === "args") {
            const buffer = /** @type {GPUBuffer} */ (this.args);
            const size = align(args.length * 4, 16);
            return { resource: { buffer, offset: offsets[number], size } };
          }
          if (role === "scratch") return { resource: { buffer: made.scratch[index] } };
          const buffer = bufferOf(step, role, index);
          const size = padded(run.bufferBytes[buffer]);
          const entry = manifest.buffers[buffer];
          if ("slot" in entry) return { slot: entry.slot, size };
          const weight = /** @type {GPUBuffer} */ (made.weights.get(entry.weight));
          return { resource: { buffer: weight, size } };
        }),
      })),
    );
    this.own = this.passes.map((pass) => this.#dispatch(pass, new Map()));
    /** @type {Map<string, Dispatch[]>} */
    this.kept = new Map();
  }

  /**
   * @param {typeof this.passes[number]} pass
   * @param {Bound} bound
   * @returns {Dispatch}
   */
  #dispatch({ pipeline, grid, step, bindings }, bound) {
    const entries = bindings.map((binding, i) => {
      if ("resource" in binding) return { binding: i, resource: binding.resource };
      const buffer = bound.get(binding.slot) ?? this.slots[binding.slot];
      return { binding: i, resource: { buffer, size: binding.size } };
    });
    const group = this.device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries });
    return { pipeline, group, grid, step };
  }

  /**
   * The run's dispatches, with callers' buffers where there are any. Only what touches them gets a
   * bind group of its own; callers that reuse buffers find it made.
   * @param {Bound} bound
   */
  dispatches(bound) {
    if (!bound.size) return this.own;
    const key = [...bound].map(([slot, buffer]) => `${slot}:${numberOf(buffer)}`).join();
    const known = this.kept.get(key);
    if (known) return known;
    const made = this.passes.map((pass, i) =>
      pass.bindings.some((b) => "slot" in b && bound.has(b.slot))
        ? this.#dispatch(pass, bound)
        : this.own[i],
    );
    if (this.kept.size >= BINDINGS) this.kept.clear();
    this.kept.set(key, made);
    return made;
  }

  release() {
    if (this.args) GpuQueue.of(this.device).destroy(this.args);
  }
}

/**
 * @param {import("./bundle.js").Step} step
 * @param {string} role
 * @param {number} index
 */
function bufferOf({ operands, output, kept }, role, index) {
  if (role === "operand") return operands[index];
  return role === "kept" ? /** @type {number} */ (kept) : output;
}

/** @type {WeakMap<GPUBuffer, number>} */
const numbers = new WeakMap();
let latest = 0;

/** @param {GPUBuffer} buffer */
function numberOf(buffer) {
  let number = numbers.get(buffer);
  if (number === undefined) numbers.set(buffer, (number = ++latest));
  return number;
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
