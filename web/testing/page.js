// The page behind the pytest fixture `browser_session` (pywebgpu/testing.py): sessions by number,
// and tensors as base64, since what a test runner hands to a page has to be JSON.

import { InferenceSession, PywebgpuError, Tensor } from "../pywebgpu.js";

/** @typedef {{type: string, dims: number[], data: string}} Packed a tensor as JSON */

/** @type {InferenceSession[]} */
const sessions = [];

/** @param {string} text */
const bytesOf = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

/** @param {ArrayBufferView<ArrayBuffer>} view */
function textOf(view) {
  const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
  const parts = [];
  // An argument list has a limit; 32 KiB stays below every engine's.
  for (let i = 0; i < bytes.length; i += 0x8000) {
    parts.push(String.fromCharCode(...bytes.subarray(i, i + 0x8000)));
  }
  return btoa(parts.join(""));
}

/** @param {Packed} packed */
function unpack({ type, dims, data }) {
  // An empty tensor tells which array its type wants.
  const { data: kind } = new Tensor(/** @type {any} */ (type), [], [0]);
  return new Tensor(/** @type {any} */ (type), new kind.constructor(bytesOf(data).buffer), dims);
}

/**
 * What `work` gives, or the error as plain data: a runner would keep no more than its text.
 * @param {() => Promise<any>} work
 */
async function answer(work) {
  try {
    return { value: await work() };
  } catch (error) {
    if (error instanceof PywebgpuError) return { error: error.toJSON() };
    const what = error instanceof Error ? (error.stack ?? error.message) : String(error);
    return { error: { type: "Error", what } };
  }
}

const facts = (/** @type {InferenceSession} */ session) => ({
  inputs: session.inputMetadata,
  outputs: session.outputMetadata,
  info: session.info,
});

/** @type {any} */ (globalThis).pywebgpuTesting = {
  /** @param {{bundle: string, options: object}} request */
  create: ({ bundle, options }) =>
    answer(async () => {
      const session = await InferenceSession.create(bundle, options);
      return { session: sessions.push(session) - 1, ...facts(session) };
    }),
  /** @param {{session: number, feeds: Record<string, Packed>}} request */
  run: ({ session, feeds }) =>
    answer(async () => {
      const fed = Object.entries(feeds).map(([name, packed]) => [name, unpack(packed)]);
      const start = performance.now();
      const outputs = await sessions[session].run(Object.fromEntries(fed));
      const ms = performance.now() - start;
      const packed = Object.entries(outputs).map(([name, { type, dims, data }]) => [
        name,
        { type, dims, data: textOf(data) },
      ]);
      return { ms, outputs: Object.fromEntries(packed) };
    }),
  /** @param {number} session */
  release: (session) => answer(async () => sessions[session].release()),
};
