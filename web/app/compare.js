// The comparison (pages/compare.html.j2): the same model in ONNX Runtime Web, on the same executor
// and the same input, run in turn with this page's, since what else the machine does slows both.

import { bytes, element, make, median, milliseconds, pageData, showError } from "./dom.js";

/** @typedef {import("./runner.js").Runner} Runner */
/** @typedef {import("../pywebgpu.js").Tensor} Tensor */

const PEER = new URL("../vendor/onnxruntime-web/", import.meta.url);
const ROUNDS = { least: 6, most: 60 };
const LONG_ENOUGH_MS = 4000;
const TURN = { runs: 8, ms: 40 }; // one's runs before the other's: that many, or that long
const PAUSE_MS = 20; // one library's threads wait awake for a while after a run
const TOLERANCE = 1e-2; // of the largest number; quantised models round by their own rules

const sleep = (/** @type {number} */ ms) => new Promise((resolve) => setTimeout(resolve, ms));

export class ComparePanel {
  #runner;
  #start = element("compare-start", HTMLButtonElement);
  #state = element("compare-state", HTMLElement);
  #rows = element("compare-rows", HTMLElement);

  /** @param {Runner} runner */
  constructor(runner) {
    this.#runner = runner;
    this.#start.addEventListener("click", () => this.#compare());
  }

  /** A session is ready. */
  ready() {
    this.#start.disabled = false;
  }

  async #compare() {
    this.#start.disabled = true;
    document.documentElement.dataset.compare = "busy";
    showError(null);
    let state = "failed";
    /** @type {any} */
    let peer = null;
    try {
      this.#state.textContent = "Loading ONNX Runtime Web…";
      const { ort, options, session } = this.#peerOptions();
      const module = await import(ort);
      Object.assign(module.env.wasm, { wasmPaths: PEER.href, numThreads: session.info.threads || 1 });
      const model = await load(pageData("onnx"));
      peer = await module.InferenceSession.create(model, options);
      const feeds = this.#runner.feeds();
      const given = Object.fromEntries(
        Object.entries(feeds).map(([name, { type, data, dims }]) => [name, new module.Tensor(type, data, dims)]),
      );
      await this.#check(feeds, await peer.run(given));
      const times = await this.#runInTurn(() => peer.run(given));
      this.#show(times, model.byteLength, module.env.versions?.web ?? "");
      state = "done";
    } catch (error) {
      this.#state.textContent = "No comparison";
      showError(error);
    } finally {
      this.#start.disabled = this.#runner.session === null;
      document.documentElement.dataset.compare = state;
      await peer?.release().catch(showError);
    }
  }

  /** Which build of the peer runs where this page's session does. */
  #peerOptions() {
    const { session } = this.#runner;
    if (!session) throw new Error("There is no model to compare with: it could not be loaded.");
    const gpu = session.provider === "webgpu";
    // The build with stack switching is smaller and quicker; not every browser has that.
    const build = gpu ? ("Suspending" in WebAssembly ? "jspi" : "webgpu") : "wasm";
    const options = { executionProviders: [session.provider], graphOptimizationLevel: "all" };
    return { ort: new URL(`ort.${build}.min.mjs`, PEER).href, options, session };
  }

  /**
   * A time counts only for the right answer.
   * @param {Record<string, Tensor>} feeds
   * @param {Record<string, any>} theirs
   */
  async #check(feeds, theirs) {
    const ours = (await this.#runner.run(feeds)) ?? {};
    for (const [name, { data }] of Object.entries(ours)) {
      const [a, b] = [Array.from(/** @type {any} */ (data), Number), Array.from(theirs[name].data, Number)];
      const scale = b.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-6);
      const off = a.reduce((most, value, i) => Math.max(most, Math.abs(value - b[i])), 0) / scale;
      if (a.length === b.length && off <= TOLERANCE) continue;
      throw new Error(`The two give different answers: "${name}" is off by ${off.toPrecision(2)} of its largest number.`);
    }
  }

  /** @param {() => Promise<unknown>} runPeer @returns {Promise<[number[], number[]]>} */
  async #runInTurn(runPeer) {
    const sides = [
      () => this.#runner.repeat(),
      async () => {
        const start = performance.now();
        await runPeer();
        return performance.now() - start;
      },
    ];
    /** @type {[number[], number[]]} */
    const times = [[], []];
    const end = performance.now() + LONG_ENOUGH_MS;
    for (let i = 0; i < ROUNDS.most && (i < ROUNDS.least || performance.now() < end); i++) {
      this.#state.textContent = `Round ${i + 1}…`;
      for (const [side, run] of sides.entries()) {
        const turn = performance.now();
        for (let n = 0; n < TURN.runs && performance.now() - turn < TURN.ms; n++) {
          const ms = await run();
          if (ms === null) throw new Error("The model has been taken away.");
          times[side].push(ms);
        }
        await sleep(PAUSE_MS);
      }
    }
    return times;
  }

  /**
   * @param {[number[], number[]]} times
   * @param {number} modelBytes
   * @param {string} version
   */
  #show([ours, theirs], modelBytes, version) {
    const files = [...this.#runner.files];
    const sum = (/** @type {boolean} */ weights) =>
      files.filter(([name]) => name.endsWith(".bin") === weights).reduce((total, [, size]) => total + size, 0);
    const runtime = arrived((url) => /\/(pywebgpu|wasm-worker)\.js$/.test(url));
    const peer = arrived((url) => url.startsWith(PEER.href));
    const row = (/** @type {string} */ name, /** @type {number[]} */ ms, /** @type {number} */ code, /** @type {number} */ model) =>
      make(
        "tr",
        {},
        make("th", { scope: "row" }, name),
        ...[milliseconds(median(ms)), milliseconds(Math.min(...ms)), bytes(code), bytes(model)].map((text) => make("td", {}, text)),
      );
    this.#rows.replaceChildren(
      row("This page", ours, runtime + sum(false), sum(true)),
      row(`ONNX Runtime Web ${version}`.trim(), theirs, peer, modelBytes),
    );
    const ratio = median(theirs) / median(ours);
    const [name, times] = ratio >= 1 ? ["This page", ratio] : ["ONNX Runtime Web", 1 / ratio];
    const verdict = times < 1.05 ? "Both equally quick" : `${name} is ${times.toFixed(2)} × as quick`;
    this.#state.textContent = `${verdict}, by ${ours.length} and ${theirs.length} runs`;
  }
}

/** Bytes of files that this page has loaded. @param {(url: string) => boolean} wanted */
function arrived(wanted) {
  const entries = /** @type {PerformanceResourceTiming[]} */ (performance.getEntriesByType("resource"));
  const sizes = new Map(
    entries.filter(({ name }) => wanted(name)).map((e) => [e.name, e.encodedBodySize || e.decodedBodySize]),
  );
  return [...sizes.values()].reduce((total, size) => total + size, 0);
}

/** @param {string} url */
async function load(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: the server answers ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}
