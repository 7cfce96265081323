// Sizes known only at run time, in the JSON form that codegen/dims.py writes: an integer, a
// symbol's name, or [operator, a, b, ...]. This is all the arithmetic on shapes that is done here.

import { BundleError } from "./errors.js";

/** @typedef {number | string | [string, ...any[]]} Dim */
/** @typedef {Map<string, number>} Sizes what each symbol stands for */

/** @type {Record<string, (args: number[]) => number>} */
const OPERATORS = {
  "+": (args) => args.reduce((a, b) => a + b, 0),
  "*": (args) => args.reduce((a, b) => a * b, 1),
  "//": ([a, b]) => (b ? Math.floor(a / b) : 0),
  "%": ([a, b]) => (b ? a - b * Math.floor(a / b) : 0),
  min: (args) => Math.min(...args),
  max: (args) => Math.max(...args),
};

/**
 * The number that `dim` stands for.
 * @param {Dim} dim
 * @param {Sizes} sizes
 * @returns {number}
 */
export function evaluate(dim, sizes) {
  if (typeof dim === "number") return dim;
  if (typeof dim === "string") {
    const value = sizes.get(dim);
    if (value !== undefined) return value;
    throw new BundleError("a size depends on a symbol that no input binds", {
      where: "manifest.json",
      got: dim,
      remedy: "Export the model again.",
    });
  }
  const [op, ...args] = dim;
  return OPERATORS[op](args.map((arg) => evaluate(arg, sizes)));
}

/**
 * The symbols in a size.
 * @param {Dim} dim
 * @returns {string[]}
 */
export const symbolsOf = (dim) =>
  typeof dim === "string" ? [dim] : Array.isArray(dim) ? dim.slice(1).flatMap(symbolsOf) : [];

/**
 * @param {number} value
 * @param {number} multiple
 */
export const align = (value, multiple) => Math.ceil(value / multiple) * multiple;

/** @param {readonly number[]} dims */
export const product = (dims) => dims.reduce((a, b) => a * b, 1);
