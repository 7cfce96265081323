// One session, many shapes: the outputs, and what memory is held after `warmup` runs and at the end.

/** Buffers of GPU devices that exist now, in bytes; counted from the first import on. */
let gpuBytes = 0;
/** @type {WeakMap<GPUBuffer, number>} */
const alive = new WeakMap();

if (globalThis.GPUDevice) {
  const { createBuffer } = GPUDevice.prototype;
  GPUDevice.prototype.createBuffer = function (descriptor) {
    const buffer = createBuffer.call(this, descriptor);
    alive.set(buffer, descriptor.size);
    gpuBytes += descriptor.size;
    return buffer;
  };
  const { destroy } = GPUBuffer.prototype;
  GPUBuffer.prototype.destroy = function () {
    gpuBytes -= alive.get(this) ?? 0;
    alive.delete(this);
    return destroy.call(this);
  };
  const { createComputePipelineAsync } = GPUDevice.prototype;
  GPUDevice.prototype.createComputePipelineAsync = function (descriptor) {
    pipelines++;
    return createComputePipelineAsync.call(this, descriptor);
  };
}
let pipelines = 0;

/** Everything that the page and its workers hold, after a collection of garbage. */
async function held() {
  const measure = /** @type {any} */ (performance).measureUserAgentSpecificMemory;
  const { bytes } = await measure.call(performance);
  return { bytes, gpuBytes, pipelines };
}

/**
 * @param {{provider: string, model: string, warmup: number, runs: any[][]}} job
 * @param {(packed: any) => any} unpacked
 * @param {(name: string, tensor: any) => any} packed
 */
export async function shapes({ provider, model, warmup, runs }, unpacked, packed) {
  const { InferenceSession, Tensor } = await import(new URL("../web/pywebgpu.js", location.href).href);
  const session = await InferenceSession.create(new URL(model, location.href), {
    executionProviders: [provider],
  });
  const results = [];
  let before;
  for (const [i, feeds] of runs.entries()) {
    if (i === warmup) before = await held();
    const tensors = feeds.map(unpacked).map(({ name, type, data, dims }) =>
      [name, new Tensor(type, data, dims)]);
    const outputs = await session.run(Object.fromEntries(tensors));
    results.push(session.outputNames.map((/** @type {string} */ n) => packed(n, outputs[n])));
  }
  const after = await held();
  session.release();
  return { results, before, after };
}
