// The tuning panel (pages/tuning.html.j2): runs the model again and again as it was last run, and
// shows what tuning makes of that.

import { importRecords } from "../pywebgpu.js";
import { element, make, milliseconds, pageData, showError } from "./dom.js";
import { LatencyPlot } from "./latency-plot.js";
import { drawRoofline } from "./roofline.js";

/** @typedef {import("./runner.js").Runner} Runner */
/** @typedef {import("../pywebgpu.js").Tuning} Tuning */
/** @typedef {import("../pywebgpu.js").KernelRow} KernelRow */
/** @typedef {import("../pywebgpu.js").TuneProgress} TuneProgress */

const BUDGET_S = 30;
const LEAST_GAP_MS = 40; // between two runs: tuning needs the model idle
const AFTERWARDS = 40; // runs that show how it is now
const STAGES = {
  python: "Loading Python…",
  profile: "Timing the kernels as they are…",
  search: "Trying other forms…",
  swap: "Trying other forms…",
  done: "",
};

const sleep = (/** @type {number} */ ms) => new Promise((resolve) => setTimeout(resolve, ms));

export class TuningPanel {
  #runner;
  /** @type {Tuning | null} */
  #tuning = null;
  #plot = new LatencyPlot(element("tuning-latency", HTMLElement));
  #start = element("tuning-start", HTMLButtonElement);
  #pause = element("tuning-pause", HTMLButtonElement);
  #cancel = element("tuning-cancel", HTMLButtonElement);
  #state = element("tuning-state", HTMLElement);
  #bar = element("tuning-progress", HTMLProgressElement);
  #contribute = /** @type {HTMLInputElement | null} */ (document.getElementById("tuning-contribute"));
  #roofline = element("tuning-roofline", HTMLElement);
  /** @type {KernelRow[]} */
  #rows = [];
  /** GFLOP/s of one core, where it is known. @type {number | undefined} */
  #peak;

  /** @param {Runner} runner */
  constructor(runner) {
    this.#runner = runner;
    this.#start.addEventListener("click", () => this.#tune().catch(showError));
    this.#pause.addEventListener("click", () => this.#togglePause());
    this.#cancel.addEventListener("click", () => this.#tuning?.cancel());
    element("tuning-export", HTMLElement).addEventListener("click", () => this.#export());
    const redraw = () => drawRoofline(this.#roofline, this.#rows, this.#peak);
    new ResizeObserver(redraw).observe(this.#roofline);
    const file = element("tuning-import", HTMLInputElement);
    file.addEventListener("change", () => this.#import(file).catch(showError));
  }

  /** A session is ready: at first, and after another executor was chosen. */
  ready() {
    this.#start.disabled = this.#tuning !== null;
    const { session } = this.#runner;
    if (session?.info.tuned) this.#state.textContent = "Started with what was tuned before";
  }

  async #tune() {
    const { session } = this.#runner;
    if (!session || this.#tuning) return;
    this.#start.disabled = true;
    document.documentElement.dataset.tuning = "busy";
    element("tuning-found", HTMLElement).hidden = false;
    // What an earlier tuning found may be of another executor.
    this.#rows = [];
    this.#showKernels();
    this.#roofline.replaceChildren();
    showError(null);
    try {
      await this.#plot.start();
      const onProgress = (/** @type {TuneProgress} */ progress) => this.#show(progress);
      // Sites that are built with a service have its address, and the visitor's choice.
      const records = pageData("records") || undefined;
      const contribute = Boolean(this.#contribute?.checked);
      const tuning = await session.tune({ budget: BUDGET_S, onProgress, records, contribute });
      this.#tuning = tuning;
      this.#cancel.disabled = false;
      this.#repeat(tuning).catch(showError);
      const report = await tuning.finished;
      const gain = report.bestMs ? report.defaultMs / report.bestMs - 1 : 0;
      const found = gain > 0.001 ? `kernels ${(100 * gain).toFixed(0)} % quicker` : "nothing quicker";
      const tried = `${report.candidates} forms tried in ${Math.round(report.seconds)} s: ${found}`;
      const stopped = report.candidates ? `Stopped. ${tried}` : "Stopped";
      this.#state.textContent = tuning.state === "cancelled" ? stopped : tried;
      this.#bar.value = 1;
    } catch (error) {
      this.#state.textContent = "Tuning failed";
      this.#bar.value = 0;
      throw error;
    } finally {
      this.#tuning = null;
      this.#start.disabled = !this.#runner.session;
      this.#pause.disabled = this.#cancel.disabled = true;
      this.#pause.textContent = "Pause";
      element("tuning-found", HTMLElement).hidden = !this.#rows.length;
      document.documentElement.dataset.tuning = "done";
    }
  }

  /**
   * Run the model as it was last run until some runs after the end.
   * @param {Tuning} tuning
   */
  async #repeat({ finished }) {
    let left = Infinity;
    const end = () => (left = AFTERWARDS);
    finished.then(end, end);
    while (left-- > 0) {
      const ms = await this.#runner.repeat();
      if (ms === null) return;
      this.#plot.add(ms);
      await sleep(Math.max(LEAST_GAP_MS, ms));
    }
  }

  /** @param {TuneProgress} progress */
  #show({ stage, label, seconds }) {
    const tuning = this.#tuning;
    const clock = seconds ? ` ${Math.round(seconds)} s of ${BUDGET_S} s` : "";
    const paused = tuning?.state === "paused"; // what was under way may still end
    if (stage !== "done" && !paused) this.#state.textContent = `${STAGES[stage]}${clock}`;
    this.#state.title = label;
    this.#bar.value = stage === "python" ? 0 : seconds / BUDGET_S;
    if (stage !== "python") this.#pause.disabled = false;
    if (stage === "swap") this.#plot.swap();
    if (!tuning || tuning.rows === this.#rows) return;
    this.#rows = tuning.rows;
    this.#peak = tuning.caps?.gflops;
    if (tuning.caps) {
      const above = this.#rows.some(({ flops, default_ms }) => (flops ?? 0) / default_ms / 1e6 > tuning.caps?.gflops);
      const why = above ? " Above the line: convolutions that need fewer multiplications than are counted (Winograd)." : "";
      element("tuning-device", HTMLElement).textContent = describe(tuning.caps) + why;
    }
    this.#showKernels();
    drawRoofline(this.#roofline, this.#rows, this.#peak);
    element("tuning-peak", HTMLElement).textContent = this.#peak
      ? "Line: a core's peak. Filled: tuned"
      : "Filled: tuned";
  }

  #showKernels() {
    const cell = (/** @type {string} */ text, kind = "") => make("td", kind ? { class: kind } : {}, text);
    const rows = this.#rows.map((row) => {
      const changed = Object.entries(row.knobs).filter(
        ([name, value]) => JSON.stringify(value) !== JSON.stringify(row.default_knobs[name]),
      );
      const name = make("td", { title: row.label }, row.label);
      const better = row.gain > 0.001;
      return make(
        "tr",
        {},
        name,
        cell(`${(100 * row.share).toFixed(1)} %`),
        cell(String(row.calls)),
        cell(milliseconds(row.default_ms)),
        cell(better ? milliseconds(row.best_ms) : row.searched ? "as it is" : ""),
        cell(better ? `+${(100 * row.gain).toFixed(0)} %` : "", "better"),
        make("td", {}, make("code", {}, changed.map(([n, v]) => `${n}=${v}`).join(" "))),
      );
    });
    element("tuning-kernels", HTMLElement).replaceChildren(...rows);
  }

  #togglePause() {
    const tuning = this.#tuning;
    if (!tuning) return;
    if (tuning.state === "paused") tuning.resume();
    else tuning.pause();
    this.#pause.textContent = tuning.state === "paused" ? "Resume" : "Pause";
    if (tuning.state === "paused") this.#state.textContent = "Paused";
  }

  async #export() {
    const records = await this.#runner.session?.records();
    const text = JSON.stringify(records ?? { format_version: 1, records: [] }, null, 1);
    const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    make("a", { href: url, download: "records.json" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }

  /** @param {HTMLInputElement} file */
  async #import(file) {
    const [chosen] = file.files ?? [];
    if (!chosen) return;
    showError(null);
    try {
      const data = JSON.parse(await chosen.text());
      await importRecords(data);
      this.#state.textContent = `${data.records.length} records added: tuning tries their winners first`;
    } catch (error) {
      // Whatever is wrong with the text, JSON or not: the visitor took another file.
      const reason = error instanceof Error ? error.message : String(error);
      throw new Error(`${chosen.name}: no records that "Export records" wrote. ${reason}`);
    } finally {
      file.value = "";
    }
  }
}

/**
 * What decides the forms that are tried, in a sentence.
 * @param {Record<string, any>} caps
 */
function describe(caps) {
  const size = (/** @type {number} */ count) =>
    count < 1 << 20 ? `${count >> 10} kB` : `${+(count / (1 << 20)).toFixed(1)} MB`;
  if (caps.gflops !== undefined) {
    return `Measured here: ${caps.gflops.toFixed(0)} GFLOP/s on one core, room for ${caps.simd_registers} registers, caches of ${size(caps.l1_bytes)} and ${size(caps.l2_bytes)}.`;
  }
  const subgroups = caps.subgroup_size ? `, subgroups of ${[...new Set(caps.subgroup_size)].join(" to ")}` : "";
  return `This device has ${size(caps.max_workgroup_storage)} of workgroup memory, workgroups of up to ${caps.max_invocations}${subgroups}${caps.f16 ? ", 16-bit floats" : ""}.`;
}
