// The time of every run as it happens, with a line where winners were taken into use.

const WINDOW = 9; // runs that the smooth line is a median of
const MOST = 4000; // runs that are kept

/** @param {string} name of a custom property */
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export class LatencyPlot {
  /** @type {any} */
  #plot = null;
  #place;
  /** Seconds, milliseconds of each run, median of the last ones. @type {[number[], number[], number[]]} */
  #data = [[], [], []];
  /** @type {number[]} */
  #swaps = [];
  #start = performance.now();
  #waiting = false;

  /** @param {HTMLElement} place */
  constructor(place) {
    this.#place = place;
  }

  /** Load the library and begin at zero. */
  async start() {
    const library = new URL("../vendor/uPlot.esm.js", import.meta.url).href;
    const { default: Plot } = await import(library);
    this.#data = [[], [], []];
    this.#swaps = [];
    this.#start = performance.now();
    const isFirst = this.#plot === null;
    const make = () => {
      this.#plot?.destroy();
      this.#plot = new Plot(this.#options(), this.#data, this.#place);
    };
    make();
    if (!isFirst) return;
    new ResizeObserver(() => this.#plot.setSize(this.#size())).observe(this.#place);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", make);
  }

  #size() {
    return { width: this.#place.clientWidth, height: this.#place.clientHeight };
  }

  #options() {
    const axis = {
      stroke: color("--soft"),
      grid: { stroke: color("--line"), width: 1 },
      ticks: { show: false },
    };
    const points = { show: true, size: 3, fill: color("--bar-rest"), width: 0 };
    const runs = { paths: () => null, points, stroke: color("--bar-rest") };
    const unit = (/** @type {string} */ name) => (/** @type {any} */ _, /** @type {number[]} */ ticks) =>
      ticks.map((tick) => `${tick} ${name}`);
    return {
      ...this.#size(),
      legend: { show: false },
      cursor: { show: false },
      padding: [12, 14, 0, 0],
      scales: { x: { time: false }, y: { range: () => range(this.#data[1]) } },
      axes: [
        { ...axis, size: 34, values: unit("s") },
        { ...axis, size: 58, values: unit("ms") },
      ],
      series: [{}, runs, { stroke: color("--bar"), width: 2, points: { show: false } }],
      hooks: { draw: [(/** @type {any} */ plot) => this.#drawSwaps(plot)] },
    };
  }

  /** @param {any} plot */
  #drawSwaps(plot) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = color("--accent");
    ctx.setLineDash([5, 4]);
    ctx.lineWidth = devicePixelRatio;
    for (const seconds of this.#swaps) {
      const x = Math.round(plot.valToPos(seconds, "x", true));
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
    ctx.restore();
  }

  /** @param {number} ms */
  add(ms) {
    if (!this.#plot) return;
    const [seconds, times, smooth] = this.#data;
    seconds.push((performance.now() - this.#start) / 1000);
    times.push(ms);
    const last = times.slice(-WINDOW).sort((a, b) => a - b);
    smooth.push(last[last.length >> 1]);
    if (seconds.length > MOST) for (const list of this.#data) list.splice(0, MOST / 4);
    this.#draw();
  }

  swap() {
    this.#swaps.push((performance.now() - this.#start) / 1000);
    this.#draw();
  }

  /** At most once a frame. */
  #draw() {
    if (this.#waiting) return;
    this.#waiting = true;
    requestAnimationFrame(() => {
      this.#waiting = false;
      this.#plot?.setData(this.#data);
      const [seconds, times, smooth] = this.#data;
      if (!times.length) return;
      const first = smooth[Math.min(WINDOW, smooth.length - 1)].toPrecision(3);
      const text = `${times.length} runs in ${Math.round(seconds.at(-1) ?? 0)} seconds: at first ${first} milliseconds, now ${smooth.at(-1)?.toPrecision(3)}; ${this.#swaps.length} swaps`;
      this.#place.setAttribute("aria-label", `Time of every run: ${text}`);
    });
  }
}

/**
 * From zero to a little above nearly all runs: one slow run must not flatten the rest.
 * @param {number[]} times
 */
function range(times) {
  const sorted = [...times].sort((a, b) => a - b);
  const most = sorted[Math.floor(0.97 * (sorted.length - 1))];
  return [0, 1.25 * (most || 1)];
}
