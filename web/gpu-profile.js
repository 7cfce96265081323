// Where a run's time goes on the GPU, by timestamps.

import { DeviceError } from "./errors.js";
import { GpuMemory } from "./gpu-memory.js";
import { encode } from "./gpu-queue.js";

/** @typedef {import("./gpu-frame.js").Dispatch} Dispatch */

const MOST_PASSES = 2048; // a query set holds 4096 timestamps

/**
 * Milliseconds of each pass on the device: the dispatches of one group, repeated.
 * @param {GPUDevice} device
 * @param {Dispatch[][]} groups
 * @param {number} repeats browsers may round timestamps to 0.1 ms
 */
export async function timePasses(device, groups, repeats) {
  if (!device.features.has("timestamp-query")) {
    throw new DeviceError("this GPU device has no timestamps", {
      where: "profile",
      expected: "a device with the feature timestamp-query",
      remedy: "Let the session open its own device, or use a browser that offers them.",
    });
  }
  /** @type {number[]} */
  const found = [];
  for (let first = 0; first < groups.length; first += MOST_PASSES) {
    found.push(...(await timeSome(device, groups.slice(first, first + MOST_PASSES), repeats)));
  }
  return found;
}

/**
 * @param {GPUDevice} device
 * @param {Dispatch[][]} groups
 * @param {number} repeats
 */
async function timeSome(device, groups, repeats) {
  const querySet = device.createQuerySet({ type: "timestamp", count: 2 * groups.length });
  const { QUERY_RESOLVE, COPY_SRC } = GPUBufferUsage;
  const size = 16 * groups.length;
  const resolved = device.createBuffer({ size, usage: QUERY_RESOLVE | COPY_SRC });
  const encoder = device.createCommandEncoder();
  groups.forEach((group, i) => {
    const pass = encoder.beginComputePass({
      timestampWrites: {
        querySet,
        beginningOfPassWriteIndex: 2 * i,
        endOfPassWriteIndex: 2 * i + 1,
      },
    });
    for (let r = 0; r < repeats; r++) encode(pass, group);
    pass.end();
  });
  encoder.resolveQuerySet(querySet, 0, 2 * groups.length, resolved, 0);
  device.queue.submit([encoder.finish()]);
  const [bytes] = await GpuMemory.of(device).read([{ buffer: resolved, bytes: size }]);
  querySet.destroy();
  resolved.destroy();
  const times = new BigUint64Array(bytes);
  return groups.map((_, i) => Number(times[2 * i + 1] - times[2 * i]) / 1e6 / repeats);
}
