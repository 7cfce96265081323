// One visit: from navigation to the first answer of one runtime, then runs until the time settles,
// then runs after a rest.
// cold.html?runtime=ours&provider=wasm&model=digits; the result lands in `window.result`.

/** @typedef {{type: string, dims: number[]}} Feed */
/**
 * @typedef {object} Runtime
 * @property {{run: (inputs: any) => Promise<Record<string, any>>}} session
 * @property {any} inputs
 * @property {number} created when the session was there, in ms since navigation
 * @property {string} note
 */

const query = new URLSearchParams(location.search);
const provider = /** @type {"wasm" | "webgpu"} */ (query.get("provider"));
const model = query.get("model");
const build = query.get("build");
const RESTS = 5;
const REST_MS = 500; // page and workers have gone to sleep; a visitor takes longer to think

/** The same numbers for every runtime. @param {Feed} feed */
function values({ type, dims }) {
  const size = dims.reduce((a, b) => a * b, 1);
  if (type === "int64") return new BigInt64Array(size).fill(1n);
  return Float32Array.from({ length: size }, (_, i) => (i % 7) / 7);
}

/** @returns {Promise<Record<string, Feed>>} */
const feedsOf = async () => (await fetch(`feeds-${model}.json`)).json();

/** @param {any} Tensor @param {Record<string, Feed>} feeds */
const tensors = (Tensor, feeds) =>
  Object.fromEntries(
    Object.entries(feeds).map(([name, f]) => [name, new Tensor(f.type, values(f), f.dims)]),
  );

/** @returns {Promise<Runtime>} */
async function ours() {
  const feeds = feedsOf();
  const { InferenceSession, Tensor } = await import("/web/pywebgpu.js");
  const session = await InferenceSession.create(`/bundles/${model}/`, {
    executionProviders: [provider],
  });
  const created = performance.now();
  const inputs = tensors(Tensor, await feeds);
  return { session, inputs, created, note: JSON.stringify(session.info) };
}

/** @returns {Promise<Runtime>} */
async function peer() {
  const feeds = feedsOf();
  const ort = await import(`/peers/onnxruntime-web/ort.${build}.bundle.min.mjs`);
  ort.env.wasm.wasmPaths = "/peers/onnxruntime-web/";
  ort.env.wasm.numThreads = navigator.hardwareConcurrency;
  const session = await ort.InferenceSession.create(`/models/${model}.onnx`, {
    executionProviders: [provider],
  });
  const created = performance.now();
  const inputs = tensors(ort.Tensor, await feeds);
  return { session, inputs, created, note: build ?? "" };
}

/** @param {number[]} values */
const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

async function visit() {
  const { session, inputs, created, note } = await (query.get("runtime") === "ours" ? ours() : peer());
  const start = performance.now();
  const outputs = await session.run(inputs);
  const first = performance.now();
  const answer = Array.from(/** @type {any} */ (Object.values(outputs)[0]).data).slice(0, 64);
  /** @type {number[]} */
  const later = [];
  // The steady state is what the last runs of two seconds take, at least nine of them.
  for (const begin = performance.now(); performance.now() - begin < 2000 || later.length < 18; ) {
    const before = performance.now();
    await session.run(inputs);
    later.push(performance.now() - before);
    if (performance.now() - begin > 60000) break;
  }
  const steady = median(later.slice(later.length >> 1));
  /** @type {number[]} */
  const rested = [];
  for (let i = 0; i < RESTS; i++) {
    await new Promise((resolve) => setTimeout(resolve, REST_MS));
    const before = performance.now();
    await session.run(inputs);
    rested.push(performance.now() - before);
  }
  const times = { first, created, first_run: first - start, steady, rested: median(rested) };
  return { ...times, runs: later.length, answer, note };
}

/** @type {any} */ (window).result = visit().catch((error) => ({ error: String(error) }));
