// A tensor that lies on the GPU: what `run` takes and, on request, gives, so that nothing crosses
// to JavaScript and back between two runs.

import { product } from "./dims.js";
import { InputError } from "./errors.js";
import { GpuMemory, padded } from "./gpu-memory.js";
import { GpuQueue } from "./gpu-queue.js";
import { ELEMENT_BYTES, unpack } from "./tensor.js";

/** @typedef {import("./tensor.js").DataType} DataType */
/** @typedef {import("./tensor.js").Storage} Storage */

export class GpuTensor {
  #buffer;
  #shared;
  #pooled;
  #disposed = false;

  /**
   * @param {GPUDevice} device the session's
   * @param {GPUBuffer} buffer with usage STORAGE and COPY_SRC, and a size padded to 16 bytes
   * @param {DataType} type ONNX's name of the element type
   * @param {readonly number[]} dims
   * @param {Storage} [storage] how elements lie in the buffer; by default "f32" for floats and
   *   "i32" for integers and bool
   * @param {boolean} [pooled] whether `dispose` gives the buffer back for later runs' outputs
   */
  constructor(device, buffer, type, dims, storage, pooled = false) {
    const floats = type.startsWith("float") || type === "bfloat16";
    /** @readonly */
    this.device = device;
    this.#buffer = buffer;
    this.#shared = !pooled;
    /** @readonly */
    this.type = type;
    /** @readonly */
    this.dims = Object.freeze([...dims]);
    /** @readonly @type {Storage} */
    this.storage = storage ?? (floats ? "f32" : "i32");
    this.#pooled = pooled;
    const needed = padded(this.#bytes());
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC;
    if (buffer.size < needed || (buffer.usage & usage) !== usage) {
      throw new InputError("the buffer cannot hold this tensor", {
        where: `new GpuTensor("${type}", [${dims.join(", ")}])`,
        got: `${buffer.size} bytes with usage ${buffer.usage}`,
        expected: `at least ${needed} bytes with usage STORAGE | COPY_SRC`,
      });
    }
  }

  #bytes() {
    return product(this.dims) * ELEMENT_BYTES[this.storage];
  }

  /** Where it lies, for work of the caller's: the runs that compute it have been submitted. */
  get buffer() {
    GpuQueue.of(this.device).submit();
    this.#shared = true;
    return this.#buffer;
  }

  /** Others than sessions may know the buffer, and write to it or read it at any time. */
  get shared() {
    return this.#shared;
  }

  /** The buffer, for runs, which keep the queue's order. @param {GpuTensor} tensor */
  static memory(tensor) {
    return tensor.#buffer;
  }

  /** Number of elements. */
  get size() {
    return product(this.dims);
  }

  /** Throws after `dispose`. @param {string} where for messages */
  check(where) {
    if (!this.#disposed) return;
    throw new InputError("the tensor has been disposed", { where });
  }

  /** The elements, as `Tensor.data` has them: waits for the runs that compute them. */
  async data() {
    this.check("GpuTensor.data");
    const part = { buffer: this.#buffer, bytes: this.#bytes() };
    const [bytes] = await GpuMemory.of(this.device).read([part]);
    return unpack(bytes, this.storage, this.type, this.dims).data;
  }

  /** Free the memory, or let later runs have it. Runs that were started before are not affected. */
  dispose() {
    if (this.#disposed) return;
    this.#disposed = true;
    if (this.#pooled) GpuMemory.of(this.device).giveBack(this.#buffer);
    else GpuQueue.of(this.device).destroy(this.#buffer);
  }
}
