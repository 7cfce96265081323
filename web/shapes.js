// From feeds to sizes: checks what the caller gave against the model's inputs, binds the symbols,
// and evaluates every size that depends on them. Done once per set of shapes.

import { evaluate, product, symbolsOf } from "./dims.js";
import { InputError } from "./errors.js";
import { GpuTensor } from "./gpu-tensor.js";
import { ELEMENT_BYTES, Tensor } from "./tensor.js";

/** @typedef {import("./dims.js").Dim} Dim */
/** @typedef {import("./dims.js").Sizes} Sizes */
/** @typedef {import("./bundle.js").Manifest} Manifest */
/** @typedef {import("./bundle.js").Port} Port */

/**
 * Everything about a run that follows from the shapes of its inputs.
 * @typedef {object} Frame
 * @property {string} key equal for equal sizes
 * @property {Sizes} sizes
 * @property {number[]} bufferBytes per buffer of the plan
 * @property {number[]} slotBytes per slot
 * @property {(number[] | null)[]} shapes of the outputs; null until the run has found out
 */

/**
 * What the symbols stand for, given these feeds.
 * @param {Manifest} manifest
 * @param {Record<string, Tensor | GpuTensor>} feeds
 * @returns {Sizes}
 */
export function bind(manifest, feeds) {
  const names = manifest.inputs.map((port) => port.name);
  const unknown = Object.keys(feeds).find((name) => !names.includes(name));
  if (unknown !== undefined) {
    throw new InputError("the model has no such input", {
      where: "run",
      got: `"${unknown}"`,
      expected: names.map((name) => `"${name}"`).join(", "),
    });
  }
  /** @type {Sizes} */
  const sizes = new Map();
  // Symbols first: a dim that is an expression may stand before the input that binds its symbol.
  for (const port of manifest.inputs) {
    const { dims } = checked(port, feeds[port.name]);
    port.shape.forEach((dim, i) => {
      if (typeof dim === "string" && !sizes.has(dim)) sizes.set(dim, dims[i]);
    });
  }
  for (const port of manifest.inputs) {
    const { dims } = feeds[port.name];
    const expected = port.shape.map((dim) => evaluate(dim, sizes));
    if (expected.some((size, i) => size !== dims[i])) {
      throw new InputError("the shape does not fit", {
        where: `input "${port.name}"`,
        got: `[${dims.join(", ")}]`,
        expected: `[${port.shape.map(text).join(", ")}]${note(sizes)}`,
      });
    }
  }
  for (const { left, right, where } of manifest.checks) {
    const [a, b] = [evaluate(left, sizes), evaluate(right, sizes)];
    if (a !== b) {
      throw new InputError("the model cannot take inputs of these sizes", {
        where,
        got: `${text(left)} = ${a} and ${text(right)} = ${b}${note(sizes)}`,
        expected: "two equal sizes",
        remedy: "Feed smaller inputs, or export the model for such sizes.",
      });
    }
  }
  return sizes;
}

/**
 * @param {Port} port
 * @param {Tensor | GpuTensor | undefined} tensor
 */
function checked(port, tensor) {
  if (!(tensor instanceof Tensor || tensor instanceof GpuTensor)) {
    throw new InputError(tensor === undefined ? "missing" : "not a Tensor", {
      where: `input "${port.name}"`,
      got: tensor === undefined ? undefined : typeof tensor,
      expected: `a Tensor ${wanted(port)}`,
    });
  }
  if (tensor.type !== port.dtype) {
    throw new InputError("wrong element type", {
      where: `input "${port.name}"`,
      got: tensor.type,
      expected: port.dtype,
    });
  }
  if (tensor.dims.length !== port.shape.length) {
    throw new InputError("wrong number of dimensions", {
      where: `input "${port.name}"`,
      got: `[${tensor.dims.join(", ")}]`,
      expected: wanted(port),
    });
  }
  return tensor;
}

/** For people. @param {Port} port */
const wanted = ({ dtype, shape }) => `${dtype}[${shape.map(text).join(", ")}]`;

/**
 * @param {Manifest} manifest
 * @param {Sizes} sizes
 * @returns {Frame}
 */
export function frame(manifest, sizes) {
  const at = (/** @type {Dim} */ dim) => evaluate(dim, sizes);
  return {
    key: keyOf(manifest, sizes),
    sizes,
    bufferBytes: manifest.buffers.map((buffer) => at(buffer.bytes)),
    slotBytes: manifest.slots.map(at),
    shapes: shapesOf(manifest, sizes),
  };
}

/**
 * The outputs' shapes, as far as these sizes tell them.
 * @param {Manifest} manifest
 * @param {Sizes} sizes
 */
export const shapesOf = (manifest, sizes) =>
  manifest.outputs.map(({ shape }) =>
    shape.every((dim) => symbolsOf(dim).every((name) => sizes.has(name)))
      ? shape.map((dim) => evaluate(dim, sizes))
      : null,
  );

/**
 * @param {Manifest} manifest
 * @param {Sizes} sizes
 */
export const keyOf = (manifest, sizes) => manifest.symbols.map((s) => sizes.get(s)).join(",");

/**
 * Bytes of output number `i`, without the padding of its buffer; all of it while its shape is not
 * known.
 * @param {Manifest} manifest
 * @param {Frame} run
 * @param {number} i
 */
export function outputBytes(manifest, run, i) {
  const { storage, buffer } = manifest.outputs[i];
  const shape = run.shapes[i];
  return shape ? product(shape) * ELEMENT_BYTES[storage] : run.bufferBytes[buffer];
}

/**
 * Sizes for trial runs while the caller's are not known: the smallest that the model allows, and
 * larger ones, since kernels may treat few rows in another way: 16 times where a symbol is not an
 * input's first axis (attention is optimised after one long sequence, not after many short ones),
 * or else, in a batch, four times.
 * @param {Manifest} manifest
 * @returns {Frame[]}
 */
export function trialFrames(manifest) {
  const at = (/** @type {(symbol: string) => number} */ size) =>
    frame(manifest, new Map(manifest.symbols.map((symbol) => [symbol, size(symbol)])));
  // Zeros may lead a program anywhere.
  if (manifest.program.length) return [];
  if (!manifest.symbols.length) return [at(() => 0)];
  // Some images are too small for some models: a size comes out as zero or below. One symbol at a
  // time is small as well, so that two negative sizes cannot hide in a product.
  const fits = (/** @type {number} */ small) =>
    [at(() => small), ...manifest.symbols.map((one) => at((s) => (s === one ? small : 512)))].every(
      ({ sizes }) => manifest.buffers.every(({ bytes }) => evaluate(unpadded(bytes), sizes) > 0),
    );
  const small = [1, 4, 16, 64, 256].find(fits);
  const allowed = (/** @type {Frame} */ { sizes }) =>
    manifest.checks.every(({ left, right }) => evaluate(left, sizes) === evaluate(right, sizes));
  if (!small) return [];
  const batch = new Set(manifest.inputs.map(({ shape }) => shape[0]));
  const isLong = (/** @type {string} */ symbol) => !batch.has(symbol);
  const larger = manifest.symbols.some(isLong)
    ? at((symbol) => (isLong(symbol) ? 16 * small : small))
    : at(() => 4 * small);
  return [at(() => small), larger].filter(allowed);
}

/** A buffer's size without the lower bound that the plan may put on it. @param {Dim} bytes @returns {Dim} */
const unpadded = (bytes) =>
  Array.isArray(bytes) && bytes[0] === "max" && typeof bytes.at(-1) === "number" ? bytes[1] : bytes;

/** For people. @param {Dim} dim @returns {string} */
export function text(dim) {
  if (!Array.isArray(dim)) return String(dim);
  const [op, ...args] = dim;
  if (op === "min" || op === "max") return `${op}(${args.map(text).join(", ")})`;
  return `(${args.map(text).join(` ${op} `)})`;
}

/** @param {Sizes} sizes */
function note(sizes) {
  const bound = [...sizes].map(([name, size]) => `${name} = ${size}`);
  return bound.length ? ` with ${bound.join(", ")}` : "";
}
