// Asks for a job, carries it out, posts the answer, asks again. A job is one case of the suite: a
// runtime, and for each data set a model and its inputs. Outputs are judged in Python.

/** @typedef {[name: string, type: string, dims: number[], base64: string]} Packed */
/** @typedef {{model: string, feeds: Packed[]}} Run */
/** @typedef {{runtime: string, provider: "wasm" | "webgpu", runs: Run[]}} Job */

const channel = `http://127.0.0.1:${new URLSearchParams(location.search).get("channel")}/`;

const ARRAYS = /** @type {Record<string, any>} */ ({
  float32: Float32Array, float64: Float64Array, int8: Int8Array, uint8: Uint8Array,
  int16: Int16Array, uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array,
  int64: BigInt64Array, uint64: BigUint64Array, bool: Uint8Array,
  float16: /** @type {any} */ (globalThis).Float16Array ?? Uint16Array,
  bfloat16: Float32Array, float8e4m3fn: Float32Array, float8e4m3fnuz: Float32Array,
  float8e5m2: Float32Array, float8e5m2fnuz: Float32Array, float4e2m1: Float32Array,
  int4: Int8Array, uint4: Uint8Array, int2: Int8Array, uint2: Uint8Array,
});

/** @param {Packed} packed */
function unpacked([name, type, dims, base64]) {
  const bytes = /** @type {any} */ (Uint8Array).fromBase64(base64);
  return { name, type, dims, data: new ARRAYS[type](bytes.buffer) };
}

/** @param {string} name @param {{type: string, dims: readonly number[], data: any}} tensor @returns {Packed} */
function packed(name, { type, dims, data }) {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  return [name, type, [...dims], /** @type {any} */ (bytes).toBase64()];
}

/** @param {Job} job */
async function ours({ provider, runs }) {
  const { InferenceSession, Tensor } = await import(new URL("../web/pywebgpu.js", location.href).href);
  const results = [];
  for (const { model, feeds } of runs) {
    const session = await InferenceSession.create(new URL(model, location.href), {
      executionProviders: [provider], warmup: false,
    });
    try {
      const tensors = feeds.map(unpacked).map(({ name, type, data, dims }) =>
        [name, new Tensor(/** @type {any} */ (type), data, dims)]);
      const outputs = await session.run(Object.fromEntries(tensors));
      results.push(session.outputNames.map((/** @type {string} */ n) => packed(n, outputs[n])));
    } finally {
      session.release();
    }
  }
  return { results };
}

/** @type {any} */
let ort = null;

/** @param {Job} job */
async function ortWeb({ provider, runs }) {
  if (!ort) {
    const folder = new URL("../peers/onnxruntime-web/", location.href).href;
    ort = await import(`${folder}${provider === "wasm" ? "ort.wasm.min.mjs" : "ort.jspi.min.mjs"}`);
    ort.env.wasm.wasmPaths = folder;
    ort.env.logLevel = "error";
  }
  const results = [];
  let onCpu = false;
  for (const { model, feeds } of runs) {
    const bytes = new Uint8Array(await (await fetch(new URL(model, location.href))).arrayBuffer());
    const create = (/** @type {object} */ more) => ort.InferenceSession.create(bytes, {
      executionProviders: [provider], logSeverityLevel: 3, ...more,
    });
    let session;
    try {
      // First without the fallback that it otherwise takes without a word.
      const alone = { extra: { session: { disable_cpu_ep_fallback: "1" } } };
      session = await create(provider === "webgpu" ? alone : {});
    } catch (error) {
      if (!String(error).includes("default CPU EP")) throw refusal(error);
      onCpu = true;
      session = await create({}).catch((/** @type {unknown} */ e) => { throw refusal(e); });
    }
    try {
      const tensors = feeds.map(unpacked).map(({ name, type, data, dims }) =>
        [name, new ort.Tensor(type, isNibble(type) ? nibbles(data) : data, dims)]);
      const outputs = await session.run(Object.fromEntries(tensors));
      results.push(session.outputNames.map((/** @type {string} */ n) =>
        packed(n, isNibble(outputs[n].type) ? spread(outputs[n]) : outputs[n])));
    } finally {
      await session.release();
    }
  }
  return { results, onCpu };
}

// ONNX Runtime Web has two elements of four bits in a byte, the first one in the low bits.
const isNibble = (/** @type {string} */ type) => type === "int4" || type === "uint4";

/** @param {Int8Array | Uint8Array} data */
const nibbles = (data) =>
  Uint8Array.from({ length: Math.ceil(data.length / 2) }, (_, i) =>
    (data[2 * i] & 15) | ((data[2 * i + 1] ?? 0) & 15) << 4);

/** @param {{type: string, dims: readonly number[], size: number, data: Uint8Array}} tensor */
const spread = ({ type, dims, size, data }) => ({
  type,
  dims,
  data: ARRAYS[type].from({ length: size }, (_, i) => {
    const bits = data[i >> 1] >> 4 * (i & 1) & 15;
    return type === "int4" && bits > 7 ? bits - 16 : bits;
  }),
});

/** Before anything ran. @param {unknown} error */
const refusal = (error) => Object.assign(new Error(String(error)), { refused: true });

/** @param {any} job */
const manyShapes = async (job) =>
  (await import("./shapes.js")).shapes(job, unpacked, packed);

const RUNTIMES = /** @type {Record<string, (job: Job) => Promise<object>>} */ ({
  ours, ortWeb, manyShapes,
});

/** Exceptions that leave a module of ORT's in an unknown state say nothing that it formulated. */
const isClean = (/** @type {string} */ message) => /ERROR_CODE|unsupported|not supported/i.test(message);

for (;;) {
  /** @type {Job} */
  const job = await (await fetch(channel)).json();
  /** @type {any} */
  let answer;
  try {
    answer = await RUNTIMES[job.runtime](job);
  } catch (error) {
    const { name, what, refused = false } = /** @type {any} */ (error);
    answer = { error: { name, what: what ?? "", message: String(error), refused } };
  }
  await fetch(channel, { method: "POST", body: JSON.stringify(answer) });
  if (job.runtime === "ortWeb" && answer.error && !isClean(answer.error.message)) {
    location.reload();
    await new Promise(() => {}); // asks for no job that the reload would lose
  }
}
