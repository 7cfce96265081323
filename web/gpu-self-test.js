// Small kernels of the families in use, with known answers: they tell a driver that computes wrongly.
// Loaded after the first answer.

import { evaluate } from "./dims.js";
import { padded } from "./gpu-memory.js";
import { unpack } from "./tensor.js";

/** @typedef {import("./bundle.js").GpuKernel} GpuKernel */
/**
 * One kernel without arguments, what it is fed (base64) and what it has to compute, within
 * `tolerance` of the largest element.
 * @typedef {object} SelfTest
 * @property {string} family
 * @property {GpuKernel & {name: string}} kernel
 * @property {string[]} operands
 * @property {"f32" | "f16" | "i32"} output
 * @property {number[]} expected
 * @property {number} tolerance
 */
/** @typedef {{codes: string[], tests: SelfTest[]}} SelfTests */
/** @typedef {{family: string, kernel: string, problem: string}} Wrong */

const PASSED = "pywebgpu-self-tests"; // in localStorage: a list of keys
const MOST = 100; // of them

/**
 * Whether these tests have passed on this device before; workers and private windows do not know.
 * @param {string} key
 */
export function hasPassed(key) {
  return passed().includes(key);
}

/** @param {string} key */
export function remember(key) {
  try {
    const keys = [...passed().filter((one) => one !== key), key];
    localStorage.setItem(PASSED, JSON.stringify(keys.slice(-MOST)));
  } catch {} // then they are run again
}

/** @returns {string[]} */
function passed() {
  try {
    return JSON.parse(localStorage.getItem(PASSED) ?? "[]");
  } catch {
    return [];
  }
}

/**
 * The kernels that do not compile or compute something else here. One after the other, so that
 * runs get between them.
 * @param {GPUDevice} device
 * @param {SelfTests} tests
 */
export async function wrongKernels(device, { codes, tests }) {
  /** @type {Wrong[]} */
  const found = [];
  for (const test of tests) {
    const problem = await tryKernel(device, codes, test).catch((error) => String(error.message));
    if (problem) found.push({ family: test.family, kernel: test.kernel.name, problem });
  }
  return found;
}

/**
 * What `begin` begins; rejects with what the device refuses of it. Error scopes are one stack for
 * all who use a device, so this one is closed before anybody else gets a turn.
 * @template T
 * @param {GPUDevice} device
 * @param {() => Promise<T>} begin
 */
async function checked(device, begin) {
  device.pushErrorScope("validation");
  const begun = begin();
  begun.catch(() => {});
  const refused = await device.popErrorScope();
  if (refused) throw refused;
  return begun;
}

/**
 * What is wrong with its output; null if nothing is.
 * @param {GPUDevice} device
 * @param {string[]} codes
 * @param {SelfTest} test
 */
async function tryKernel(device, codes, test) {
  const compile = (/** @type {{code: number}} */ { code }) =>
    device.createComputePipelineAsync({
      layout: "auto",
      compute: { module: device.createShaderModule({ code: codes[code] }), entryPoint: "main" },
    });
  const pipelines = await checked(device, () => Promise.all(test.kernel.passes.map(compile)));
  return checked(device, () => runKernel(device, pipelines, test));
}

/**
 * @param {GPUDevice} device
 * @param {GPUComputePipeline[]} pipelines
 * @param {SelfTest} test
 */
async function runKernel(device, pipelines, { kernel, operands, output, expected, tolerance }) {
  const { STORAGE, COPY_SRC, COPY_DST, MAP_READ } = GPUBufferUsage;
  /** @param {number} bytes */
  const storage = (bytes) =>
    device.createBuffer({ size: padded(bytes), usage: STORAGE | COPY_SRC | COPY_DST });
  const fed = operands.map((text) => {
    const data = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const buffer = storage(data.length);
    const whole = new Uint8Array(buffer.size);
    whole.set(data);
    device.queue.writeBuffer(buffer, 0, whole);
    return buffer;
  });
  const result = storage(expected.length * (output === "f16" ? 2 : 4));
  device.queue.writeBuffer(result, 0, new Uint8Array(result.size).fill(0xff)); // NaN, -1
  const scratch = kernel.scratch.map((dim) => storage(evaluate(dim, new Map())));
  const staging = device.createBuffer({ size: result.size, usage: MAP_READ | COPY_DST });
  const encoder = device.createCommandEncoder();
  const pass = encoder.beginComputePass();
  kernel.passes.forEach(({ bindings, grid }, i) => {
    const entries = bindings.map(([role, index], binding) => {
      const buffer = { operand: fed[index], scratch: scratch[index] }[role] ?? result;
      return { binding, resource: { buffer } };
    });
    const layout = pipelines[i].getBindGroupLayout(0);
    pass.setPipeline(pipelines[i]);
    pass.setBindGroup(0, device.createBindGroup({ layout, entries }));
    const [x, y, z] = grid.map((dim) => evaluate(dim, new Map()));
    pass.dispatchWorkgroups(x, y, z);
  });
  pass.end();
  encoder.copyBufferToBuffer(result, 0, staging, 0, result.size);
  device.queue.submit([encoder.finish()]);
  await staging.mapAsync(GPUMapMode.READ);
  const problem = compare(staging.getMappedRange(), output, expected, tolerance);
  for (const buffer of [...fed, result, ...scratch, staging]) buffer.destroy();
  return problem;
}

/**
 * @param {ArrayBuffer} bytes
 * @param {"f32" | "f16" | "i32"} storage
 * @param {number[]} expected
 * @param {number} tolerance
 */
function compare(bytes, storage, expected, tolerance) {
  const found = unpack(bytes, storage, "float32", [expected.length]).data;
  const allowed = tolerance * Math.max(...expected.map(Math.abs));
  const wrong = expected.flatMap((value, i) =>
    Math.abs(Number(found[i]) - value) <= allowed ? [] : [i],
  );
  if (!wrong.length) return null;
  const [i] = wrong;
  return (
    `${wrong.length} of ${expected.length} elements are wrong, the first of them number ${i}: ` +
    `${found[i]} in place of ${expected[i]}`
  );
}
