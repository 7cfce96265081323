// What the pages for any model share: a run on random or typed numbers, the time it takes, and what
// came out. The page has a form with a field `dim-<size>` for every open size, `values-<input>` for
// what is typed, and `top-<input>` for the largest random integer.

import { Tensor } from "../pywebgpu.js";
import { element, make, median, milliseconds, showError } from "./dom.js";
import { Runner } from "./runner.js";

/** @typedef {{name: string, type: import("../tensor.js").DataType, shape: (number | string)[]}} Port */

const RUNS = 20;
const SHOWN = 12; // elements of an output

export const isFloat = (/** @type {string} */ type) => type.includes("float");
const isWide = (/** @type {string} */ type) => type === "int64" || type === "uint64";

export class Explorer {
  #form = element("form", HTMLFormElement);
  #status = element("status", HTMLElement);
  #result = element("result", HTMLElement);
  #run = element("run", HTMLButtonElement);
  #bench = element("bench", HTMLButtonElement);

  /** @param {(inputs: Port[], outputs: Port[]) => void} [describe] fills the form in, for a new model */
  constructor(describe) {
    let described = "";
    this.runner = new Runner(() => {
      const { inputMetadata: inputs = [], outputMetadata: outputs = [] } = this.runner.session ?? {};
      // After a switch of the executor what was typed stays.
      const now = JSON.stringify([inputs, outputs]);
      if (now !== described) describe?.(inputs, outputs);
      described = now;
      this.run(1);
    });
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.run(1);
    });
    this.#bench.addEventListener("click", () => {
      if (this.#form.reportValidity()) this.run(RUNS);
    });
  }

  /** @param {string} name */
  #field(name) {
    return String(new FormData(this.#form).get(name) ?? "").trim();
  }

  #feeds() {
    const inputs = /** @type {Port[]} */ (this.runner.session?.inputMetadata ?? []);
    return Object.fromEntries(
      inputs.map(({ name, type, shape }) => {
        const dims = shape.map((d) => (typeof d === "number" ? d : Number(this.#field(`dim-${d}`))));
        const text = this.#field(`values-${name}`);
        const values = text
          ? typed(text, name, type, dims)
          : random(type, dims, Number(this.#field(`top-${name}`)));
        return [name, new Tensor(/** @type {any} */ (type), values, dims)];
      }),
    );
  }

  /** @param {number} times with the same feeds */
  async run(times) {
    this.#run.disabled = this.#bench.disabled = true;
    try {
      const feeds = this.#feeds();
      /** @type {number[]} */
      const took = [];
      let outputs = null;
      for (let i = 0; i < times; i++) {
        this.#status.textContent = times > 1 ? `Run ${i + 1} of ${times}…` : "Running…";
        const start = performance.now();
        outputs = await this.runner.run(feeds);
        took.push(performance.now() - start);
      }
      this.#status.textContent = "";
      if (!outputs) return; // the session is gone, and the page says why
      this.#result.replaceChildren(...Object.entries(outputs).flatMap(output));
      this.#status.textContent =
        times > 1
          ? `median ${milliseconds(median(took))}, best ${milliseconds(Math.min(...took))}`
          : `took ${milliseconds(took[0])}`;
      showError(null);
    } catch (error) {
      this.#status.textContent = "";
      showError(error);
    } finally {
      this.#run.disabled = this.#bench.disabled = this.runner.session === null;
    }
  }
}

/** @param {number[]} dims */
const sizeOf = (dims) => dims.reduce((a, b) => a * b, 1);

/**
 * @param {string} type
 * @param {number[]} dims
 * @param {number} top the largest integer
 */
function random(type, dims, top) {
  const values = Array.from({ length: sizeOf(dims) }, () =>
    isFloat(type) ? normal() : Math.floor(Math.random() * (top + 1)),
  );
  return type === "bool" ? values.map((v) => v > 0) : isWide(type) ? values.map(BigInt) : values;
}

/** A normally distributed number (Box and Muller). */
const normal = () =>
  Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());

/**
 * Numbers as people write them, with commas, spaces or brackets between; one stands for all.
 * @param {string} text
 * @param {string} name
 * @param {string} type
 * @param {number[]} dims
 */
function typed(text, name, type, dims) {
  const words = text.replaceAll("−", "-").match(/[^\s,;()[\]]+/g) ?? [];
  const count = sizeOf(dims);
  if (words.length !== count && words.length !== 1) {
    const shape = dims.join(" × ");
    throw new Error(`${name}: ${words.length} values are typed, but its shape ${shape} takes ${count} (or one for all)`);
  }
  const values = words.map((word) => {
    const plain = { true: "1", false: "0" }[word.toLowerCase()] ?? word;
    const number = Number(plain);
    if (Number.isNaN(number) || (!isFloat(type) && !Number.isInteger(number))) {
      const expected = isFloat(type) ? "a number" : "a whole number";
      throw new Error(`${name}: "${word}" is not ${expected}, which ${type} takes`);
    }
    return type === "bool" ? number !== 0 : isWide(type) ? BigInt(plain) : number;
  });
  return values.length === count ? values : Array(count).fill(values[0]);
}

const shown = (/** @type {number} */ v) => Number(v.toPrecision(5)).toString().replaceAll("-", "−");

/** @param {[string, Tensor]} entry */
function output([name, { data, dims }]) {
  /** @type {number[]} */
  const numbers = Array.from(/** @type {any} */ (data), Number);
  const more = numbers.length > SHOWN ? "  …" : "";
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
    make("h3", {}, name, " ", make("span", { class: "hint number" }, dims.join(" × ") || "scalar")),
    make("pre", { tabindex: "0" }, numbers.slice(0, SHOWN).map(shown).join("  ") + more),
    make("p", { class: "hint number" }, range),
  ];
}
