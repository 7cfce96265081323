// Kernels on two logarithmic axes: how many operations for each byte that is read or written, and
// how many a second. A hollow point is the default, a full one the tuned form.

/** @typedef {import("../pywebgpu.js").KernelRow} KernelRow */

const NAMESPACE = "http://www.w3.org/2000/svg";
const [LEFT, RIGHT, TOP, BOTTOM] = [44, 14, 14, 30];

/**
 * @param {string} tag
 * @param {Record<string, string | number>} attributes
 * @param {string} [text]
 */
function shape(tag, attributes, text) {
  const made = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Powers of ten around values. @param {number[]} values @returns {[number, number]} */
function decades(values) {
  const logs = values.map(Math.log10);
  const [low, high] = [Math.floor(Math.min(...logs)), Math.ceil(Math.max(...logs))];
  return [low, Math.max(high, low + 1)];
}

/**
 * @param {HTMLElement} place
 * @param {KernelRow[]} rows
 * @param {number | undefined} peak GFLOP/s of one thread
 */
export function drawRoofline(place, rows, peak) {
  const products = rows.filter((row) => row.flops && row.default_ms);
  if (!products.length) return;
  const speed = (/** @type {KernelRow} */ row, /** @type {number} */ ms) => (row.flops ?? 0) / ms / 1e6;
  const intensity = (/** @type {KernelRow} */ row) => (row.flops ?? 0) / row.bytes;
  const speeds = products.flatMap((row) => [speed(row, row.default_ms), speed(row, row.best_ms)]);
  const [x0, x1] = decades(products.map(intensity));
  const [y0, y1] = decades(peak ? [...speeds, peak] : speeds);
  const { clientWidth: width, clientHeight: height } = place;
  const x = (/** @type {number} */ v) =>
    LEFT + ((Math.log10(v) - x0) / (x1 - x0)) * (width - LEFT - RIGHT);
  const y = (/** @type {number} */ v) =>
    height - BOTTOM - ((Math.log10(v) - y0) / (y1 - y0)) * (height - TOP - BOTTOM);

  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  const line = (/** @type {string} */ kind, /** @type {number[]} */ [a, b, c, d]) =>
    svg.append(shape("line", { class: kind, x1: a, y1: b, x2: c, y2: d }));
  for (let n = x0; n <= x1; n++) {
    line("grid", [x(10 ** n), TOP, x(10 ** n), height - BOTTOM]);
    const anchor = n === x1 ? "end" : "middle";
    const label = `${10 ** n}${n === x1 ? " op/byte" : ""}`;
    svg.append(shape("text", { x: x(10 ** n), y: height - 11, "text-anchor": anchor }, label));
  }
  for (let n = y0; n <= y1; n++) {
    line("grid", [LEFT, y(10 ** n), width - RIGHT, y(10 ** n)]);
    svg.append(shape("text", { x: LEFT - 6, y: y(10 ** n) + 4, "text-anchor": "end" }, `${10 ** n}`));
  }
  svg.append(shape("text", { x: LEFT + 6, y: TOP + 14 }, "GFLOP/s"));
  if (peak) line("roof", [LEFT, y(peak), width - RIGHT, y(peak)]);
  for (const row of products) {
    const radius = 3.5 + 9 * Math.sqrt(row.share);
    const [at, from, to] = [x(intensity(row)), y(speed(row, row.default_ms)), y(speed(row, row.best_ms))];
    const moved = row.best_ms < row.default_ms;
    if (moved) line("move", [at, from, at, to]);
    svg.append(shape("circle", { class: "default", cx: at, cy: from, r: radius }));
    if (moved) svg.append(shape("circle", { class: "tuned", cx: at, cy: to, r: radius }));
  }
  place.replaceChildren(svg);
  const best = Math.max(...speeds).toPrecision(3);
  const of = peak ? ` of ${peak.toPrecision(3)} that this device reaches` : "";
  const text = `${products.length} kernels, the quickest at ${best} GFLOP/s${of}`;
  place.setAttribute("aria-label", `Speed of the kernels: ${text}`);
}
