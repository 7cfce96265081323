// Operands for measuring: random values, the same each time; and the comparison of two outputs.

import { fromHalf, toHalf } from "../tensor.js";

/** @typedef {import("../tensor.js").Storage | "i8"} Storage constants only, those of 8 bits */
/** @typedef {[Storage, number]} Extent a buffer's elements, and its bytes */

// An odd count keeps rows of a large matrix from being equal.
const COUNT = 65535;

/** Numbers in [0, 1), by xorshift. */
function uniform() {
  let x = 0x9e3779b9;
  return () => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return (x >>> 0) / 2 ** 32;
  };
}

/** @type {Map<Storage, Uint8Array<ArrayBuffer>>} */
const blocks = new Map();

/**
 * Values to fill buffers with, again and again: floats of mean 0 and variance 1; integers 0 or 1,
 * which are right as an index too; bytes that are also parts of ordinary floats.
 * @param {Storage} storage
 */
export function block(storage) {
  let found = blocks.get(storage);
  if (found) return found;
  const next = uniform();
  const normal = () => {
    let sum = -6; // 12 numbers of variance 1/12, and mean 1/2
    for (let i = 0; i < 12; i++) sum += next();
    return sum;
  };
  let data;
  if (storage === "i32") data = Int32Array.from({ length: COUNT }, () => Math.floor(2 * next()));
  // Among weights lie scales, which are f32: these bytes make ordinary ones.
  else if (storage === "i8") data = Int8Array.from({ length: COUNT }, () => 0x3d + 3 * next());
  else if (storage === "f32") data = Float32Array.from({ length: COUNT }, normal);
  else data = Uint16Array.from({ length: COUNT }, () => toHalf(normal()));
  found = new Uint8Array(data.buffer);
  blocks.set(storage, found);
  return found;
}

/**
 * The elements of a buffer as numbers.
 * @param {Storage} storage
 * @param {ArrayBuffer} bytes
 */
function numbers(storage, bytes) {
  if (storage === "i32") return new Int32Array(bytes, 0, bytes.byteLength >> 2);
  if (storage === "f32") return new Float32Array(bytes, 0, bytes.byteLength >> 2);
  return Float32Array.from(new Uint16Array(bytes, 0, bytes.byteLength >> 1), fromHalf);
}

/**
 * What is wrong with an output, if anything: NaN and infinities must be where they are expected,
 * the rest may differ by `tolerance` of the largest element.
 * @param {ArrayBuffer} got
 * @param {ArrayBuffer} want
 * @param {Storage} storage
 * @param {number} tolerance
 * @returns {string | null}
 */
export function difference(got, want, storage, tolerance) {
  const [a, b] = [numbers(storage, got), numbers(storage, want)];
  let [scale, off] = [0, 0];
  for (let i = 0; i < b.length; i++) {
    if (Object.is(a[i], b[i]) || a[i] === b[i]) {
      if (Number.isFinite(b[i])) scale = Math.max(scale, Math.abs(b[i]));
      continue;
    }
    if (!Number.isFinite(a[i]) || !Number.isFinite(b[i])) {
      return `wrong: ${a[i]} where the default has ${b[i]}`;
    }
    scale = Math.max(scale, Math.abs(b[i]));
    off = Math.max(off, Math.abs(a[i] - b[i]));
  }
  if (off <= tolerance * scale) return null;
  return `wrong: differs by ${off.toPrecision(3)} where the largest element is ${scale.toPrecision(3)}`;
}
