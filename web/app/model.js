// The page for any model: its inputs and outputs, a run on random numbers, the time that takes.

import { Tensor } from "../pywebgpu.js";
import { element, make, median, milliseconds, showError } from "./dom.js";
import { Runner } from "./runner.js";

/** @typedef {{name: string, type: string, shape: (number | string)[]}} Port */

const RUNS = 20;

const form = element("form", HTMLFormElement);
const status = element("status", HTMLElement);
const result = element("result", HTMLElement);
const runButton = element("run", HTMLButtonElement);
const benchButton = element("bench", HTMLButtonElement);

const runner = new Runner(() => {
  runButton.disabled = benchButton.disabled = false;
  run(1);
});

const isFloat = (/** @type {string} */ type) => type.includes("float");

/** @param {string} name */
const chosen = (name) => Number(new FormData(form).get(name));

function randomFeeds() {
  const inputs = /** @type {Port[]} */ (runner.session?.inputMetadata ?? []);
  return Object.fromEntries(
    inputs.map(({ name, type, shape }) => {
      const sizes = shape.map((d) => (typeof d === "number" ? d : chosen(`dim-${d}`)));
      const count = sizes.reduce((a, b) => a * b, 1);
      const top = isFloat(type) ? 0 : chosen(`top-${name}`);
      return [name, randomTensor(type, count, top, sizes)];
    }),
  );
}

/**
 * @param {string} type
 * @param {number} count
 * @param {number} top
 * @param {number[]} sizes
 */
function randomTensor(type, count, top, sizes) {
  const values = Array.from({ length: count }, () =>
    isFloat(type) ? normal() : Math.floor(Math.random() * (top + 1)),
  );
  const wide = type === "int64" || type === "uint64";
  const list = type === "bool" ? values.map((v) => v > 0) : wide ? values.map(BigInt) : values;
  return new Tensor(/** @type {any} */ (type), list, sizes);
}

/** A normally distributed number (Box and Muller). */
const normal = () =>
  Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());

/** @param {number} times */
async function run(times) {
  runButton.disabled = benchButton.disabled = true;
  try {
    const feeds = randomFeeds();
    /** @type {number[]} */
    const took = [];
    let outputs = null;
    for (let i = 0; i < times; i++) {
      status.textContent = times > 1 ? `Run ${i + 1} of ${times}…` : "Running…";
      const start = performance.now();
      outputs = await runner.run(feeds);
      took.push(performance.now() - start);
    }
    if (outputs) showOutputs(outputs);
    status.textContent =
      times > 1
        ? `median ${milliseconds(median(took))}, best ${milliseconds(Math.min(...took))}`
        : milliseconds(took[0]);
    showError(null);
  } catch (error) {
    status.textContent = "";
    showError(error);
  } finally {
    runButton.disabled = benchButton.disabled = runner.session === null;
  }
}

/** @param {Record<string, Tensor>} outputs */
function showOutputs(outputs) {
  const parts = Object.entries(outputs).flatMap(([name, { data, dims: shape }]) => {
    /** @type {number[]} */
    const numbers = Array.from(data, Number);
    const shown = (/** @type {number} */ v) => Number(v.toPrecision(5)).toString();
    const first = numbers.slice(0, 12).map(shown).join("  ") + (numbers.length > 12 ? "  …" : "");
    let [low, high, sum] = [Infinity, -Infinity, 0];
    for (const value of numbers) {
      low = Math.min(low, value);
      high = Math.max(high, value);
      sum += value;
    }
    const range = numbers.length
      ? `lowest ${shown(low)}, highest ${shown(high)}, mean ${shown(sum / numbers.length)}`
      : "no elements";
    return [
      make("h3", {}, name, " ", make("span", { class: "hint number" }, shape.join(" × "))),
      make("pre", { tabindex: "0" }, first),
      make("p", { class: "hint number" }, range),
    ];
  });
  result.replaceChildren(...parts);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  run(1);
});
benchButton.addEventListener("click", () => {
  if (form.reportValidity()) run(RUNS);
});
runner.start();
