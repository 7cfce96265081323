// What every page with a model shares: creating the session, switching between executors, timing,
// and the panel that tells the visitor about it (pages/runtime.html.j2).

import { DeviceError, InferenceSession, Tensor } from "../pywebgpu.js";
import { bytes, element, make, median, milliseconds, pageData, showError } from "./dom.js";
import { canIsolate, isIsolatedByWorker, isolate, stopIsolating } from "./worker.js";

/** @typedef {"webgpu" | "wasm"} Provider */
/** @typedef {Awaited<ReturnType<typeof InferenceSession.create>>} Session */

const PROVIDERS = /** @type {Provider[]} */ (["webgpu", "wasm"]);
/** @type {Record<Provider, string>} */
const NAMES = { webgpu: "WebGPU", wasm: "WebAssembly" };
const WINDOW = 20; // runs that the median is taken over

/**
 * The executors to try, in order: from the address (`?provider=wasm`), else WebGPU first, unless
 * the browser only emulates it on the processor: WebAssembly starts and runs quicker there.
 * @returns {Promise<{providers: Provider[], emulated: boolean}>}
 */
async function wantedProviders() {
  const wanted = new URLSearchParams(location.search).get("provider");
  const found = PROVIDERS.filter((name) => wanted === name);
  if (found.length) return { providers: found, emulated: false };
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  const info = /** @type {{isFallbackAdapter?: boolean} | undefined} */ (adapter?.info);
  return info?.isFallbackAdapter
    ? { providers: [...PROVIDERS].reverse(), emulated: true }
    : { providers: PROVIDERS, emulated: false };
}

/**
 * One model on a page: a session on one executor at a time, and the panel about it.
 *
 * `onReady` is called whenever a session is ready: at first and after each switch.
 */
export class Runner {
  /** @type {Session | null} */
  session = null;
  #panel = element("runtime", HTMLElement);
  /** The bundle's folder, or its files. @type {string | Map<string, Blob>} */
  #source = pageData("bundle");
  /** Bytes of each file that the session loaded. @type {Map<string, number>} */
  files = new Map();
  /** @type {Map<Provider, number[]>} */
  #times = new Map(PROVIDERS.map((name) => [name, []]));
  /** @type {Map<Provider, string>} */
  #reasons = new Map();
  /** @type {Promise<unknown>} */
  #work = Promise.resolve();
  #onReady;
  #emulated = false;
  /** What was run last. @type {Record<string, Tensor> | null} */
  #feeds = null;
  /** @type {import("./tuning.js").TuningPanel | null} */
  #tuning = null;
  /** @type {import("./compare.js").ComparePanel | null} */
  #compare = null;

  /** @param {() => void} onReady */
  constructor(onReady) {
    this.#onReady = onReady;
    for (const radio of this.#radios()) {
      radio.addEventListener("change", () => this.#choose(/** @type {Provider} */ (radio.value)));
    }
  }

  /**
   * Create the session on the best executor; errors are shown on the page.
   * @param {Map<string, Blob>} [files] a bundle that takes the place of the page's
   */
  async start(files) {
    if (files) this.#take(files);
    this.#addPanels().catch(showError);
    const { providers, emulated } = await wantedProviders();
    this.#emulated = emulated;
    await this.#create(providers);
  }

  /**
   * Run the model when earlier runs and switches are done; null when there is no session.
   * @param {Record<string, Tensor>} feeds
   * @param {{timed?: boolean}} [options] timed: this run counts for the median
   * @returns {Promise<Record<string, Tensor> | null>}
   */
  run(feeds, { timed = true } = {}) {
    return this.#inTurn(async () => {
      if (!this.session) return null;
      this.#feeds = feeds;
      const start = performance.now();
      const outputs = await this.session.run(feeds);
      if (timed) this.#count(this.#provider(), performance.now() - start);
      return outputs;
    });
  }

  /** @param {Map<string, Blob>} files */
  #take(files) {
    this.#source = files;
    this.#feeds = null;
    this.#reasons.clear();
    for (const times of this.#times.values()) times.length = 0;
  }

  /** What was run last, or zeros. */
  feeds() {
    if (!this.session) throw new Error("There is no model: it could not be loaded.");
    return (this.#feeds ??= zeros(this.session));
  }

  /** Run what was run last again. Milliseconds, or null without a session. */
  repeat() {
    return this.#inTurn(async () => {
      if (!this.session) return null;
      const feeds = this.feeds();
      const start = performance.now();
      await this.session.run(feeds);
      const ms = performance.now() - start;
      this.#count(this.#provider(), ms);
      return ms;
    });
  }

  /**
   * @template T
   * @param {() => Promise<T>} task
   * @returns {Promise<T>}
   */
  #inTurn(task) {
    const done = this.#work.then(task);
    this.#work = done.catch(() => {});
    return done;
  }

  /** The panels below the model, on sites that have them. */
  async #addPanels() {
    if (document.getElementById("tuning") && !this.#tuning) {
      const { TuningPanel } = await import("./tuning.js");
      this.#tuning = new TuningPanel(this);
      if (this.session) this.#tuning.ready();
    }
    if (document.getElementById("compare") && !this.#compare) {
      const { ComparePanel } = await import("./compare.js");
      this.#compare = new ComparePanel(this);
      if (this.session) this.#compare.ready();
    }
  }

  #provider() {
    return /** @type {Provider} */ (this.session?.provider);
  }

  #radios() {
    const found = this.#panel.querySelectorAll("input[name=provider]");
    return /** @type {HTMLInputElement[]} */ ([...found]);
  }

  /** @param {Provider} provider */
  async #choose(provider) {
    const before = this.session && this.#provider();
    if (before === provider) return;
    await this.#create([provider]);
    // A choice that does not work must not leave the page without a model.
    if (!this.session && before) await this.#create([before], { keepError: true });
  }

  /**
   * @param {Provider[]} providers
   * @param {{keepError?: boolean}} [options]
   */
  async #create(providers, { keepError = false } = {}) {
    if (!keepError) showError(null);
    document.documentElement.dataset.state = "loading";
    for (const radio of this.#radios()) radio.disabled = true;
    await this.#inTurn(async () => {
      this.session?.release();
      this.session = null;
      const progress = new Download();
      try {
        const threads = Number(new URLSearchParams(location.search).get("threads")) || undefined;
        this.session = await InferenceSession.create(this.#source, {
          executionProviders: providers,
          onProgress: progress.update,
          threads,
        });
        this.files = progress.finish();
      } catch (error) {
        // A damaged site says nothing about the executor: only a device's error rules it out.
        if (error instanceof DeviceError && providers.length === 1) {
          this.#reasons.set(providers[0], error.message);
        }
        progress.fail();
        showError(error);
      }
      this.#describe();
    });
    document.documentElement.dataset.state = this.session ? "ready" : "failed";
    if (!this.session) return;
    this.#onReady();
    this.#tuning?.ready();
    this.#compare?.ready();
  }

  /** Tell what runs, and why what does not run does not. */
  #describe() {
    const info = this.session?.info;
    for (const { feature, reason } of info?.unavailable ?? []) {
      if (feature === "webgpu" || feature === "wasm") this.#reasons.set(feature, reason);
    }
    for (const radio of this.#radios()) {
      const name = /** @type {Provider} */ (radio.value);
      radio.checked = name === info?.provider;
      radio.disabled = this.#reasons.has(name);
      this.#showTime(name);
    }
    document.documentElement.dataset.provider = info?.provider ?? "";
    const onGpu = info?.provider === "webgpu";
    element("fact-how-label", HTMLElement).textContent = onGpu ? "Kernels" : "Threads and SIMD";
    element("fact-device", HTMLElement).textContent = info ? deviceName(info) : "–";
    element("fact-device", HTMLElement).title = info ? deviceName(info) : "";
    element("fact-how", HTMLElement).textContent = info ? howItRuns(info) : "–";
    this.#showNotes(info?.unavailable ?? []);
  }

  /** @param {{feature: string, reason: string}[]} unavailable */
  #showNotes(unavailable) {
    /** @type {Map<string, string>} */
    const notes = new Map();
    for (const [name, reason] of this.#reasons) notes.set(NAMES[name], reason);
    for (const { feature, reason } of unavailable) {
      if (feature !== "webgpu" && feature !== "wasm") notes.set(featureName(feature), reason);
    }
    const items = [...notes].map(([name, reason]) => {
      const item = make("li", {}, make("strong", {}, `No ${name}: `), sentence(reason));
      if (name === "threads" && canIsolate()) item.append(" ", button("Turn threads on", isolate));
      return item;
    });
    if (this.#emulated) {
      const why = "This browser emulates it on the processor, so WebAssembly is the first choice.";
      items.push(make("li", {}, make("strong", {}, "WebGPU without a GPU: "), why));
    }
    if (!items.length && this.session) {
      const name = NAMES[this.#provider()];
      items.push(make("li", {}, `Nothing is missing here that would make ${name} quicker.`));
    }
    element("notes", HTMLElement).replaceChildren(...items);
    isIsolatedByWorker().then((yes) => {
      if (!yes) return;
      const how = "A service worker of this site isolates the page, for threads.";
      const item = make("li", {}, how, " ", button("Remove it", stopIsolating));
      element("notes", HTMLElement).append(item);
    });
  }

  /**
   * @param {Provider} provider
   * @param {number} ms
   */
  #count(provider, ms) {
    const times = this.#times.get(provider) ?? [];
    times.push(ms);
    if (times.length > WINDOW) times.shift();
    this.#showTime(provider);
  }

  /** @param {Provider} provider */
  #showTime(provider) {
    const times = this.#times.get(provider) ?? [];
    const time = times.length ? milliseconds(median(times)) : "";
    const label = this.#panel.querySelector(`[data-time=${provider}]`);
    const otherwise = this.#reasons.has(provider) ? "not available here" : "";
    if (label) label.textContent = time || otherwise;
    if (this.session?.provider !== provider) return;
    const many = times.length > 1;
    element("fact-time-label", HTMLElement).textContent = many
      ? `Median of ${times.length} runs`
      : "Time per inference";
    element("fact-time", HTMLElement).textContent = time || "–";
    const name = NAMES[provider];
    element("badge", HTMLElement).textContent = time ? `${name} · ${time}` : name;
  }
}

/** Inputs for a page that has run nothing yet; what is open in their shapes is 1. @param {Session} session */
function zeros({ inputMetadata }) {
  return Object.fromEntries(
    inputMetadata.map(({ name, type, shape }) => {
      const dims = shape.map((size) => (typeof size === "number" ? size : 1));
      const count = dims.reduce((a, b) => a * b, 1);
      return [name, new Tensor(type, Array(count).fill(type.endsWith("int64") ? 0n : 0), dims)];
    }),
  );
}

/** The download's line: a bar for all files together and, opened, one for each. */
class Download {
  #text = element("download-text", HTMLElement);
  #bar = element("download-total", HTMLProgressElement);
  #list = element("download-files", HTMLElement);
  /** @type {Map<string, {bar: HTMLProgressElement, text: HTMLElement, bytes: number}>} */
  #files = new Map();
  #start = performance.now();
  #loaded = 0;
  #total = 0;
  #over = false;

  constructor() {
    this.#list.replaceChildren();
    this.#text.textContent = "Starting…";
    element("badge", HTMLElement).textContent = "Starting…";
    this.#bar.value = 0;
  }

  /** @type {import("../bundle.js").OnProgress} */
  update = ({ file, loaded, total, fileLoaded, fileTotal }) => {
    if (this.#over) return; // what was under way when another file failed still arrives
    this.#loaded = loaded;
    this.#total = total;
    this.#bar.max = total || 1;
    this.#bar.value = loaded;
    this.#text.textContent = `Loading ${bytes(loaded)} of ${bytes(total)}`;
    element("badge", HTMLElement).textContent = this.#text.textContent;
    const row = this.#files.get(file) ?? this.#add(file);
    row.bytes = fileTotal;
    row.bar.max = fileTotal || 1;
    row.bar.value = fileLoaded;
    row.text.textContent = `${bytes(fileLoaded)} of ${bytes(fileTotal)}`;
  };

  /** @param {string} file */
  #add(file) {
    const bar = document.createElement("progress");
    bar.setAttribute("aria-label", file);
    const text = make("span", { class: "number" });
    this.#list.append(make("li", {}, make("code", {}, file), bar, text));
    const row = { bar, text, bytes: 0 };
    this.#files.set(file, row);
    return row;
  }

  /** All is there; bytes of each file. */
  finish() {
    this.#over = true;
    const took = milliseconds(performance.now() - this.#start);
    this.#bar.value = this.#bar.max;
    this.#text.textContent = `${bytes(this.#loaded || this.#total)}, ready in ${took}`;
    return new Map([...this.#files].map(([name, { bytes }]) => [name, bytes]));
  }

  fail() {
    this.#over = true;
    this.#text.textContent = "Not loaded";
    element("badge", HTMLElement).textContent = "Not loaded";
  }
}

/**
 * A small button at the end of a note.
 * @param {string} text
 * @param {() => Promise<void>} action
 */
function button(text, action) {
  const made = make("button", { type: "button", class: "button" }, text);
  made.addEventListener("click", () => action().catch(showError));
  return made;
}

/** @param {string} text */
function sentence(text) {
  const plain = text.replace(/^(webgpu|wasm): /, "").replace(/\s+$/, "");
  return plain.charAt(0).toUpperCase() + plain.slice(1) + (/[.!?]$/.test(plain) ? "" : ".");
}

/** @param {string} feature */
const featureName = (feature) => feature.replace("simd", "SIMD");

/** @param {Session["info"]} info */
function deviceName(info) {
  if (info.provider === "webgpu") return info.device || "GPU";
  return `${navigator.hardwareConcurrency || "?"} processor cores`;
}

/** @param {Session["info"]} info */
function howItRuns(info) {
  if (info.provider === "webgpu") return "WGSL shaders";
  const threads = info.threads === 1 ? "1 thread" : `${info.threads} threads`;
  return `${threads}, ${String(info.variant).includes("relaxed") ? "relaxed SIMD" : "SIMD"}`;
}
