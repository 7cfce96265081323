// The Python page's console: one statement after the other, with history and completion. Python's
// side of it is pywebgpu/page_console.py.

import { element, make } from "./dom.js";

/** @typedef {import("../py/client.js").PythonRuntime} PythonRuntime */

const MODULE = "pywebgpu.page_console";
const INDENT = "    ";

export class Console {
  #output = element("output", HTMLElement);
  #line = element("line", HTMLTextAreaElement);
  #hints = element("completions", HTMLElement);
  #python;
  /** @type {string[]} */
  #history = [];
  /** Which of the history is shown; its length: what is being written. */
  #place = 0;
  #draft = "";
  /** After Escape, Tab leaves the field as it does elsewhere. */
  #tabLeaves = false;
  /** Statements run one after the other, however fast they are entered. */
  #work = Promise.resolve();

  /** @param {() => Promise<PythonRuntime>} python loads it when it is needed first */
  constructor(python) {
    this.#python = python;
    this.#line.addEventListener("keydown", (event) => this.#key(event));
    this.#line.addEventListener("input", () => this.#fit());
  }

  clear() {
    this.#output.replaceChildren();
  }

  /**
   * @param {string} text
   * @param {"plain" | "echo" | "error"} [kind]
   */
  print(text, kind = "plain") {
    this.#output.append(make("span", { class: kind }, `${text}\n`));
    this.#output.scrollTop = this.#output.scrollHeight;
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const { key, ctrlKey, shiftKey, altKey, metaKey } = event;
    const { value, selectionStart, selectionEnd } = this.#line;
    const before = value.slice(0, selectionStart);
    const plain = !ctrlKey && !shiftKey && !altKey && !metaKey;
    const leaves = this.#tabLeaves;
    this.#tabLeaves = key === "Escape";
    /** @type {(() => unknown) | null} */
    let action = null;
    if (key === "Enter" && !shiftKey && !event.isComposing) action = () => (this.#work = this.#work.then(() => this.#enter()));
    else if (key === "Tab" && plain && before.trim() && !leaves) action = () => this.#complete(before).catch((error) => this.#fail(error));
    else if (key === "ArrowUp" && plain && !before.includes("\n")) action = () => this.#recall(-1);
    else if (key === "ArrowDown" && plain && !value.slice(selectionEnd).includes("\n")) action = () => this.#recall(1);
    else if (ctrlKey && key === "l") action = () => this.clear();
    if (!action) return;
    event.preventDefault();
    action();
  }

  /** Run what is written, or go on writing where it is not complete. */
  async #enter() {
    const source = this.#line.value;
    if (!source.trim()) return;
    document.documentElement.dataset.console = "busy";
    this.#hints.textContent = "";
    try {
      const python = await this.#python();
      if (!(await python.call(MODULE, "is_complete", source))) {
        this.#break();
        return;
      }
      this.#history.push(source);
      this.#set("");
      this.#place = this.#history.length;
      this.print(source.trimEnd().replace(/^/gm, "... ").replace("...", ">>>"), "echo");
      const [kind, text] = await python.call(MODULE, "run", source);
      if (kind !== "nothing") this.print(text.trimEnd(), kind === "error" ? "error" : "plain");
    } catch (error) {
      this.#fail(error);
    } finally {
      document.documentElement.dataset.console = "done";
    }
  }

  /** @param {unknown} error */
  #fail(error) {
    this.print(error instanceof Error ? error.message : String(error), "error");
  }

  /** A new line below the cursor, as far in as the last one, and further in a block. */
  #break() {
    const { value, selectionStart, selectionEnd } = this.#line;
    const last = value.slice(0, selectionStart).split("\n").at(-1) ?? "";
    const indent = (/^\s*/.exec(last)?.[0] ?? "") + (last.trimEnd().endsWith(":") ? INDENT : "");
    this.#line.setRangeText(`\n${indent}`, selectionStart, selectionEnd, "end");
    this.#fit();
  }

  /** @param {string} before what stands before the cursor */
  async #complete(before) {
    const line = before.split("\n").at(-1) ?? "";
    if (!line.trim()) {
      this.#line.setRangeText(INDENT, before.length, before.length, "end");
      return;
    }
    const python = await this.#python();
    const [names, start] = /** @type {[string[], number]} */ (await python.call(MODULE, "complete", line));
    const { value, selectionStart } = this.#line;
    if (value.slice(0, selectionStart) !== before) return; // more has been typed meanwhile
    const from = before.length - line.length + start;
    const common = names.reduce((prefix, name) => {
      while (!name.startsWith(prefix)) prefix = prefix.slice(0, -1);
      return prefix;
    }, names[0] ?? "");
    if (common.length > line.length - start) this.#line.setRangeText(common, from, before.length, "end");
    const short = names.map((name) => name.slice(name.lastIndexOf(".") + 1));
    this.#hints.textContent = names.length === 1 ? "" : short.join("  ") || "No completion";
  }

  /** @param {-1 | 1} step */
  #recall(step) {
    const place = this.#place + step;
    if (place < 0 || place > this.#history.length) return;
    if (this.#place === this.#history.length) this.#draft = this.#line.value;
    this.#place = place;
    this.#set(this.#history[place] ?? this.#draft);
  }

  /** @param {string} text */
  #set(text) {
    this.#line.value = text;
    this.#fit();
  }

  /** As many rows as there are lines. */
  #fit() {
    this.#line.rows = this.#line.value.split("\n").length;
  }
}
