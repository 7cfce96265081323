// Work for one GPU device, in order. A submission costs the browser as much as ten dispatches, so
// work that nobody can look at yet waits for what comes after it.

/** @typedef {import("./gpu-frame.js").Dispatch} Dispatch */

const MOST = 64; // dispatches that wait: the device is to begin while the page goes on encoding

/** @type {WeakMap<GPUDevice, GpuQueue>} */
const known = new WeakMap();

export class GpuQueue {
  #device;
  /** @type {GPUCommandEncoder | null} */
  #encoder = null;
  /** @type {GPUComputePassEncoder | null} */
  #pass = null;
  #dispatches = 0;
  #scheduled = false;

  /** One per device: sessions that share it see each other's work in order. @param {GPUDevice} device */
  static of(device) {
    let queue = known.get(device);
    if (!queue) known.set(device, (queue = new GpuQueue(device)));
    return queue;
  }

  /** Not for callers: see `of`. @param {GPUDevice} device */
  constructor(device) {
    this.#device = device;
  }

  /** Dispatches that have not been submitted. */
  get waiting() {
    return this.#dispatches;
  }

  /** @param {Dispatch[]} dispatches */
  dispatch(dispatches) {
    this.#encoder ??= this.#device.createCommandEncoder();
    this.#pass ??= this.#encoder.beginComputePass();
    encode(this.#pass, dispatches);
    this.#dispatches += dispatches.length;
  }

  /**
   * @param {GPUBuffer} source
   * @param {GPUBuffer} target
   * @param {number} bytes
   * @param {number} [offset] in `target`
   */
  copy(source, target, bytes, offset = 0) {
    this.#encoder ??= this.#device.createCommandEncoder();
    this.#pass?.end();
    this.#pass = null;
    this.#encoder.copyBufferToBuffer(source, 0, target, offset, bytes);
  }

  /** Submit what waits. */
  submit() {
    if (!this.#encoder) return;
    this.#pass?.end();
    const commands = this.#encoder.finish();
    this.#encoder = this.#pass = null;
    this.#dispatches = 0;
    this.#device.queue.submit([commands]);
  }

  /** Submit once enough waits, or when the page has nothing else to do. */
  submitSoon() {
    if (this.#dispatches >= MOST) {
      this.submit();
    } else if (this.#encoder && !this.#scheduled) {
      this.#scheduled = true;
      setTimeout(() => {
        this.#scheduled = false;
        this.submit();
      });
    }
  }

  /**
   * @param {GPUBuffer} buffer
   * @param {BufferSource} data
   * @param {number} [offset]
   */
  write(buffer, data, offset = 0) {
    this.submit(); // a write comes before whatever is submitted after it
    this.#device.queue.writeBuffer(buffer, offset, /** @type {any} */ (data));
  }

  /** Takes effect after all work so far. @param {GPUBuffer} buffer */
  destroy(buffer) {
    this.submit();
    buffer.destroy();
  }
}

/**
 * @param {GPUComputePassEncoder} pass
 * @param {Dispatch[]} dispatches
 */
export function encode(pass, dispatches) {
  for (const { pipeline, group, grid } of dispatches) {
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, group);
    pass.dispatchWorkgroups(grid[0], grid[1], grid[2]);
  }
}
