// In which order a plan's steps are played where data decide it (see codegen/program.py). The wasm
// module plays its program itself and leaves behind what it has found; on WebGPU we play it.

import { evaluate } from "./dims.js";
import { InputError } from "./errors.js";

/** @typedef {import("./dims.js").Dim} Dim */
/** @typedef {import("./dims.js").Sizes} Sizes */
/** @typedef {{symbol: string, buffer: number, most: Dim, where: string}} Read */
/** @typedef {{trips: Dim, going?: number, limited: boolean, body: Program, where: string}} Loop */
/** @typedef {{condition: number, then: Program, else: Program}} Branch */
/** @typedef {{steps: [number, number]} | {read: Read} | {loop: Loop} | {branch: Branch}} Item */
/** @typedef {Item[]} Program */

/**
 * Every item, those inside others after them.
 * @param {Program} program
 * @returns {Item[]}
 */
export const walk = (program) =>
  program.flatMap((item) => {
    if ("loop" in item) return [item, ...walk(item.loop.body)];
    if ("branch" in item) return [item, ...walk(item.branch.then), ...walk(item.branch.else)];
    return [item];
  });

/**
 * Bind a size that a run has found out.
 * @param {Read} read
 * @param {number} found
 * @param {Sizes} sizes
 */
export function count({ symbol, most, where }, found, sizes) {
  const limit = evaluate(most, sizes);
  if (found < 0 || found > limit) {
    throw new InputError("the data ask for more than there is room for", {
      where,
      got: found,
      expected: `0 to ${limit}`,
      remedy: "Feed other values, or change the model's limits.",
    });
  }
  sizes.set(symbol, found);
}

/**
 * A loop whose condition has stayed true for too long.
 * @param {Loop} loop
 * @param {Sizes} sizes
 */
function endless({ trips, where }, sizes) {
  return new InputError("the loop does not end", {
    where,
    got: `${evaluate(trips, sizes)} turns`,
    expected: "a condition that becomes false before",
    remedy: "Feed other values, or give the Loop a number of trips.",
  });
}

/**
 * What a module that has played the program found out.
 * @param {Program} program
 * @param {number} fault number of the item that stopped it, counted from 1; 0: none
 * @param {Map<number, number>} elements of the buffers that are read
 * @param {Sizes} sizes
 */
export function settle(program, fault, elements, sizes) {
  walk(program).forEach((item, i) => {
    if ("loop" in item && fault === i + 1) throw endless(item.loop, sizes);
    // Those inside a body say nothing of outputs, and may not have been reached.
    if ("read" in item && (program.includes(item) || fault === i + 1)) {
      count(item.read, elements.get(item.read.buffer) ?? 0, sizes);
    }
  });
}

/**
 * Plays a program; what there is to do is the caller's.
 * @param {Program} program
 * @param {Sizes} sizes gets what is found out
 * @param {(steps: [number, number]) => void} steps
 * @param {(buffer: number) => Promise<number>} look the element of a buffer, after all steps so far
 */
export async function follow(program, sizes, steps, look) {
  for (const item of program) {
    if ("steps" in item) steps(item.steps);
    else if ("read" in item) count(item.read, await look(item.read.buffer), sizes);
    else if ("branch" in item) {
      const chosen = (await look(item.branch.condition)) ? item.branch.then : item.branch.else;
      await follow(chosen, sizes, steps, look);
    } else {
      const { loop } = item;
      const trips = evaluate(loop.trips, sizes);
      for (let turn = 0; ; turn++) {
        if (loop.going !== undefined && !(await look(loop.going))) break;
        if (turn >= trips && loop.limited) throw endless(loop, sizes);
        if (turn >= trips) break;
        await follow(loop.body, sizes, steps, look);
      }
    }
  }
}
