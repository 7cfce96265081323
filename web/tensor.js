// What callers hand in and get back, and how its elements change on the way into a buffer: kernels
// hold f32, i32 or f16 only (pywebgpu.codegen.spec.Storage), users speak in ONNX's types.

import { product } from "./dims.js";
import { InputError } from "./errors.js";

/**
 * @typedef {"float32" | "float16" | "float64" | "bfloat16" | "int64" | "int32" | "int16" | "int8"
 *   | "uint64" | "uint32" | "uint16" | "uint8" | "int4" | "uint4" | "int2" | "uint2" | "float8e4m3fn"
 *   | "float8e4m3fnuz" | "float8e5m2" | "float8e5m2fnuz" | "float4e2m1" | "bool"} DataType
 */
/** @typedef {"f32" | "i32" | "f16"} Storage */
/** @typedef {Float32Array | Int32Array | Uint16Array} Packed what buffers are filled with */
/**
 * @typedef {Float32Array | Float64Array | Int8Array | Uint8Array | Uint8ClampedArray | Int16Array
 *   | Uint16Array | Int32Array | Uint32Array | BigInt64Array | BigUint64Array} TypedArray
 */

// Not in every browser yet; without it, float16 data are bits in a Uint16Array.
const Float16 = /** @type {any} */ (globalThis).Float16Array;

/**
 * The array that outputs of a type come in; inputs may also come in those of ACCEPTED.
 * @type {Record<DataType, any>}
 */
const ARRAYS = {
  float32: Float32Array,
  float16: Float16 ?? Uint16Array,
  float64: Float64Array,
  bfloat16: Float32Array,
  int64: BigInt64Array,
  int32: Int32Array,
  int16: Int16Array,
  int8: Int8Array,
  uint64: BigUint64Array,
  uint32: Uint32Array,
  uint16: Uint16Array,
  uint8: Uint8Array,
  int4: Int8Array,
  uint4: Uint8Array,
  int2: Int8Array,
  uint2: Uint8Array,
  float8e4m3fn: Float32Array,
  float8e4m3fnuz: Float32Array,
  float8e5m2: Float32Array,
  float8e5m2fnuz: Float32Array,
  float4e2m1: Float32Array,
  bool: Uint8Array,
};

/**
 * The numbers of integer types that are narrower than what their arrays hold.
 * @type {Partial<Record<DataType, readonly [number, number]>>}
 */
const RANGES = { int4: [-8, 7], uint4: [0, 15], int2: [-2, 1], uint2: [0, 3] };

/** @type {Partial<Record<DataType, any[]>>} */
const ACCEPTED = {
  float16: [Uint16Array],
  int64: [Int32Array],
  uint64: [Uint32Array],
  uint8: [Uint8ClampedArray],
};

/** An n-dimensional array: `data` in row-major order, `dims` its shape. */
export class Tensor {
  /**
   * @param {DataType} type ONNX's name of the element type
   * @param {TypedArray | ArrayLike<number | bigint | boolean>} data a typed array is kept, not copied
   * @param {readonly number[]} [dims] by default one dimension, as long as the data
   */
  constructor(type, data, dims = [data.length]) {
    const kind = ARRAYS[type];
    if (!kind) {
      throw new InputError("unknown element type", {
        where: "new Tensor",
        got: type,
        expected: Object.keys(ARRAYS).join(", "),
      });
    }
    if (!ArrayBuffer.isView(data)) {
      data = fromList(kind, data);
    } else if (![kind, ...(ACCEPTED[type] ?? [])].some((k) => data instanceof k)) {
      throw new InputError("the array's type does not fit the element type", {
        where: `new Tensor("${type}")`,
        got: data.constructor.name,
        expected: [kind, ...(ACCEPTED[type] ?? [])].map((k) => k.name).join(" or "),
      });
    }
    if (dims.some((d) => !Number.isInteger(d) || d < 0) || product(dims) !== data.length) {
      throw new InputError("the shape does not fit the data", {
        where: `new Tensor("${type}")`,
        got: `${data.length} elements for [${dims.join(", ")}]`,
        expected: "as many elements as the product of the shape",
      });
    }
    /** @readonly */
    this.type = type;
    /** @readonly @type {any} */
    this.data = data;
    /** @readonly */
    this.dims = Object.freeze([...dims]);
  }

  /** Number of elements. */
  get size() {
    return this.data.length;
  }

  /** Leave the memory to later outputs; `data` is empty afterwards. Whoever drops a large output
   * for the next one saves the time that fresh memory takes, which can be most of a run's. */
  dispose() {
    const { buffer, byteLength } = this.data;
    const whole = byteLength && byteLength === buffer.byteLength && buffer instanceof ArrayBuffer;
    if (!whole || !("transfer" in buffer)) return;
    const kept = pool.get(byteLength) ?? [];
    if (kept.length >= KEPT) return;
    if (pool.size >= LENGTHS) pool.clear();
    pool.set(byteLength, [...kept, /** @type {any} */ (buffer).transfer()]);
  }
}

/** Memory of disposed tensors by length in bytes. @type {Map<number, ArrayBuffer[]>} */
const pool = new Map();
const KEPT = 4; // of each length
const LENGTHS = 8;

/** Memory for an output; what it holds is left over. @param {number} bytes */
export function memory(bytes) {
  const kept = pool.get(bytes)?.pop();
  return kept ?? new ArrayBuffer(bytes);
}

/**
 * @param {any} kind
 * @param {ArrayLike<number | bigint | boolean>} list
 */
function fromList(kind, list) {
  const big = kind === BigInt64Array || kind === BigUint64Array;
  return big ? kind.from(list, (/** @type {any} */ v) => BigInt(v)) : kind.from(list, Number);
}

/**
 * The tensor's elements as a port's buffer holds them. Shares memory with it where it can.
 * @param {Tensor} tensor
 * @param {import("./bundle.js").Port} port
 * @returns {Packed}
 */
export function pack(tensor, { name, storage, limits }) {
  const { type, data } = tensor;
  const where = `input "${name}"`;
  if (storage === "i32") return packIntegers(data, type, where, limits);
  const half = type === "float16";
  if (storage === "f16") {
    if (half) return new Uint16Array(data.buffer, data.byteOffset, data.length);
    const isInfinite = (/** @type {number} */ bits) => (bits & 0x7fff) === 0x7c00;
    return narrowed(data, halves(data), isInfinite, "float16", where);
  }
  if (data instanceof Float32Array) return data;
  if (half && data instanceof Uint16Array) return floats(data);
  const packed = new Float32Array(data);
  if (type !== "float64") return packed;
  return narrowed(data, packed, (value) => Math.abs(value) === Infinity, "float32", where);
}

/**
 * `packed`, unless a finite number of `data` became infinite on the way.
 * @template {Packed} T
 * @param {any} data
 * @param {T} packed
 * @param {(stored: number) => boolean} isInfinite
 * @param {string} type what is stored
 * @param {string} where
 */
function narrowed(data, packed, isInfinite, type, where) {
  const i = /** @type {any} */ (packed).findIndex(
    (/** @type {number} */ stored, /** @type {number} */ k) => isInfinite(stored) && Number.isFinite(data[k]),
  );
  if (i < 0) return packed;
  throw new InputError(`the value does not fit ${type}`, {
    where: `${where}, element ${i}`,
    got: data[i],
    expected: `a number of ${type}'s range`,
    remedy: `The model is computed in ${type}; use smaller values.`,
  });
}

/**
 * @param {any} data
 * @param {DataType} type
 * @param {string} where
 * @param {[number, number]} [limits] for what the model computes from them to fit 32 bits
 */
function packIntegers(data, type, where, limits) {
  if (data instanceof Int32Array && !limits) return data;
  if (type === "bool") return Int32Array.from(data, (v) => (v ? 1 : 0));
  const packed = new Int32Array(data.length);
  const [low, high] = limits ?? RANGES[type] ?? [-(2 ** 31), 2 ** 31 - 1];
  for (let i = 0; i < data.length; i++) {
    const value = Number(data[i]);
    packed[i] = value;
    if (!(value >= low && value <= high)) {
      const fits = limits ? "32 bits after what the model does with it" : "32 bits";
      throw new InputError(`the value does not fit ${RANGES[type] ? type : fits}`, {
        where: `${where}, element ${i}`,
        got: data[i],
        expected: `${low} to ${high}`,
        remedy: RANGES[type] ? undefined : "Kernels compute integers in 32 bits; use smaller values.",
      });
    }
  }
  return packed;
}

/**
 * The tensor that a buffer's bytes stand for.
 * @param {ArrayBuffer} bytes owned by the result
 * @param {Storage} storage
 * @param {DataType} type
 * @param {readonly number[]} dims
 */
export function unpack(bytes, storage, type, dims) {
  const size = product(dims);
  const kind = ARRAYS[type];
  /** @type {any} */
  let data;
  if (storage === "i32") {
    const ints = new Int32Array(bytes, 0, size);
    if (kind === BigInt64Array || kind === BigUint64Array) {
      data = new kind(size);
      for (let i = 0; i < size; i++) data[i] = BigInt(ints[i]);
    } else {
      data = kind === Int32Array ? ints : new kind(ints);
    }
  } else if (storage === "f16") {
    const widened = () => floats(new Uint16Array(bytes, 0, size));
    if (type === "float16") data = new kind(bytes, 0, size);
    else data = kind === Float32Array ? widened() : new kind(widened());
  } else {
    const stored = new Float32Array(bytes, 0, size);
    if (kind === Float32Array) data = stored;
    else data = kind === Uint16Array ? halves(stored) : new kind(stored);
  }
  return new Tensor(type, data, dims);
}

/** @param {DataType} type @param {readonly number[]} dims */
export const zeros = (type, dims) => new Tensor(type, new ARRAYS[type](product(dims)), dims);

/**
 * @param {DataType} type
 * @param {Uint8Array<ArrayBuffer>} bytes a whole buffer
 * @param {readonly number[]} dims
 */
export const fromBytes = (type, bytes, dims) => new Tensor(type, new ARRAYS[type](bytes.buffer), dims);

/** The tensor's memory. @param {Tensor} tensor */
export const toBytes = ({ data }) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

/** Bytes of an element. @type {Record<Storage, number>} */
export const ELEMENT_BYTES = { f32: 4, i32: 4, f16: 2 };

/**
 * What half-precision bits stand for.
 * @param {Uint16Array} bits
 */
function floats(bits) {
  // The browser's own conversion of an array is a thousand times as quick as one by one.
  if (Float16) return new Float32Array(new Float16(bits.buffer, bits.byteOffset, bits.length));
  const found = new Float32Array(bits.length);
  for (let i = 0; i < found.length; i++) found[i] = fromHalf(bits[i]);
  return found;
}

/**
 * The nearest half-precision floats, as bits.
 * @param {any} data
 */
function halves(data) {
  if (Float16) return new Uint16Array(new Float16(data).buffer);
  const found = new Uint16Array(data.length);
  for (let i = 0; i < found.length; i++) found[i] = toHalf(data[i]);
  return found;
}

const scratch = new DataView(new ArrayBuffer(4));

/**
 * The bits of the half-precision float nearest to `value` (ties to even).
 * @param {number} value
 */
export function toHalf(value) {
  scratch.setFloat32(0, value);
  const bits = scratch.getUint32(0);
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;
  // Below 2^-14 the result is a multiple of 2^-24:.
  if (magnitude < 0x38800000) return sign | roundEven(Math.abs(value) * 2 ** 24);
  const odd = (magnitude >>> 13) & 1;
  return sign | ((magnitude - 0x38000000 + 0xfff + odd) >>> 13);
}

/** @param {number} value */
function roundEven(value) {
  const floor = Math.floor(value);
  const rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2) ? floor + 1 : floor;
}

/** @param {number} bits */
export function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >>> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return exponent ? sign * 2 ** (exponent - 25) * (1024 + fraction) : sign * fraction * 2 ** -24;
}
