// The measuring worker: carries out what host.js asks, one message after the other. It may be ended
// at any time, since a candidate can hang; nothing of the page's is in it.

import { GpuBench } from "./gpu-bench.js";
import { WasmBench } from "./wasm-bench.js";

/** @type {any} */
let bench;
let last = Promise.resolve();

/** @param {{id: number, command: string, [key: string]: any}} message */
async function answer({ id, command, ...message }) {
  try {
    if (command === "open") bench = message.provider === "webgpu" ? new GpuBench() : new WasmBench();
    postMessage({ id, value: await bench[command](message) });
  } catch (error) {
    postMessage({ id, error: error instanceof Error ? error.message : String(error) });
  }
}

onmessage = ({ data }) => {
  last = last.then(() => answer(data));
};
