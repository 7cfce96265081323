// Buffers of one GPU device: storage that runs hand out and take back, and reading back through
// mapped buffers, several reads in flight.

import { align } from "./dims.js";
import { DeviceError } from "./errors.js";
import { GpuQueue } from "./gpu-queue.js";

/** @typedef {{buffer: GPUBuffer, bytes: number}} Part what to read: the first bytes of a buffer */

const SMALLEST = 16; // bytes of a buffer that holds nothing: a binding must not be empty
const KEPT_BYTES = 64 << 20; // of read-back and of returned buffers each; beyond it they are freed
const KEPT_COUNT = 64;

/** The size at which a storage buffer of so many bytes is made and bound: whole vec4s. @param {number} bytes */
export const padded = (bytes) => align(Math.max(bytes, SMALLEST), SMALLEST);

/** @type {WeakMap<GPUDevice, GpuMemory>} */
const known = new WeakMap();

export class GpuMemory {
  /** One per device, since its buffers may be shared. @param {GPUDevice} device */
  static of(device) {
    let memory = known.get(device);
    if (!memory) known.set(device, (memory = new GpuMemory(device)));
    return memory;
  }

  /** Not for callers: see `of`. @param {GPUDevice} device */
  constructor(device) {
    this.device = device;
    this.queue = GpuQueue.of(device);
    this.storage = new Kept(this.queue);
    this.staging = new Kept(this.queue);
  }

  /**
   * A storage buffer.
   * @param {number} bytes
   * @param {string} what for messages
   */
  buffer(bytes, what) {
    const { maxBufferSize, maxStorageBufferBindingSize } = this.device.limits;
    const size = padded(bytes);
    if (size > maxBufferSize || size > maxStorageBufferBindingSize) {
      throw new DeviceError(`${what} is larger than this device binds`, {
        where: "webgpu",
        got: `${size} bytes`,
        expected: `at most ${Math.min(maxBufferSize, maxStorageBufferBindingSize)} bytes`,
        remedy: "Use smaller inputs, a bundle in f16, int8 or int4, or the wasm provider.",
      });
    }
    const { STORAGE, COPY_DST, COPY_SRC } = GPUBufferUsage;
    return this.device.createBuffer({ size, usage: STORAGE | COPY_DST | COPY_SRC });
  }

  /** A storage buffer of exactly the padded size, to be given back. @param {number} bytes */
  take(bytes) {
    const size = padded(bytes);
    return this.storage.take((buffer) => buffer.size === size) ?? this.buffer(bytes, "a tensor");
  }

  /** Work so far still finds its contents. @param {GPUBuffer} buffer */
  giveBack(buffer) {
    this.storage.keep(buffer);
  }

  /**
   * @param {GPUBuffer} buffer
   * @param {ArrayBufferView} data
   * @param {number} [offset]
   */
  write(buffer, data, offset = 0) {
    if (data.byteLength % 4) {
      // Whole words only: an odd number of f16 elements is followed by padding.
      const whole = new Uint8Array(align(data.byteLength, 4));
      whole.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
      data = whole;
    }
    this.queue.write(buffer, /** @type {any} */ (data), offset);
  }

  /**
   * As all work so far leaves them: one mapped buffer for all parts.
   * @param {Part[]} parts
   * @returns {Promise<ArrayBuffer[]>}
   */
  async read(parts) {
    const { device, queue, staging } = this;
    const total = parts.reduce((sum, { bytes }) => sum + align(bytes, 8), 0);
    if (total === 0) {
      queue.submit();
      return parts.map(() => new ArrayBuffer(0));
    }
    const { MAP_READ, COPY_DST } = GPUBufferUsage;
    const target =
      staging.take((buffer) => buffer.size >= total) ??
      device.createBuffer({ size: align(total, 256), usage: MAP_READ | COPY_DST });
    /** @type {number[]} */
    const offsets = [];
    let end = 0;
    for (const { buffer, bytes } of parts) {
      offsets.push(end);
      if (bytes) queue.copy(buffer, target, align(bytes, 4), end);
      end += align(bytes, 8); // mapped ranges begin at multiples of 8
    }
    queue.submit();
    await target.mapAsync(GPUMapMode.READ, 0, total);
    const mapped = target.getMappedRange(0, total);
    const found = parts.map(({ bytes }, i) => mapped.slice(offsets[i], offsets[i] + bytes));
    target.unmap();
    staging.keep(target);
    return found;
  }

  /** Free what nobody holds. */
  release() {
    this.storage.destroy();
    this.staging.destroy();
  }
}

/** Buffers that wait for their next use, bounded. */
class Kept {
  /** @param {GpuQueue} queue */
  constructor(queue) {
    this.queue = queue;
    /** @type {GPUBuffer[]} */
    this.buffers = [];
    this.bytes = 0;
  }

  /** @param {(buffer: GPUBuffer) => boolean} fits */
  take(fits) {
    const i = this.buffers.findIndex(fits);
    if (i < 0) return undefined;
    const [buffer] = this.buffers.splice(i, 1);
    this.bytes -= buffer.size;
    return buffer;
  }

  /** @param {GPUBuffer} buffer */
  keep(buffer) {
    if (this.buffers.length >= KEPT_COUNT || this.bytes + buffer.size > KEPT_BYTES) {
      this.queue.destroy(buffer);
      return;
    }
    this.buffers.push(buffer);
    this.bytes += buffer.size;
  }

  destroy() {
    for (const buffer of this.buffers) this.queue.destroy(buffer);
    this.buffers = [];
    this.bytes = 0;
  }
}
