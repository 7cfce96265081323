// The digits page: a drawing pad, the network's answer as bars, samples from the test set.

import { Tensor } from "../pywebgpu.js";
import { element, make, newestOnly, pageData, setBar, showError } from "./dom.js";
import { Runner } from "./runner.js";
import { rasterise } from "./strokes.js";

/** @typedef {import("./strokes.js").Point} Point */
/** @typedef {{label: number, pixels: number[]}} Sample pixels: 8x8, 0 to 16 */

const PEN = 0.075; // the visible pen's width, as a share of the pad
const STEP = 0.04; // how far an arrow key moves the pen

const pad = element("pad", HTMLCanvasElement);
const seen = element("seen", HTMLCanvasElement);
const verdict = element("verdict", HTMLOutputElement);
const sure = element("sure", HTMLElement);
const bars = [...element("bars", HTMLElement).children];

/** What is on the pad: strokes drawn by the visitor, or a sample's pixels. */
/** @type {Point[][]} */
let strokes = [];
/** @type {Float32Array<ArrayBuffer> | null} */
let samplePixels = null;
/** The keyboard's pen, shown while the pad is used with keys. */
/** @type {{at: Point, down: boolean} | null} */
let keyPen = null;

// ------------------------------------------------------------------ reading

/** Read what is on the pad. */
const read = newestOnly(async (isOld) => {
  const image = currentImage();
  showSeen(image);
  if (!image) {
    showAnswer(null);
    return;
  }
  const outputs = await runner.run({ image: new Tensor("float32", image, [1, 1, 8, 8]) });
  // The pad may have been cleared meanwhile.
  if (outputs && !isOld()) showAnswer(outputs.probabilities.data);
});
const runner = new Runner(read);

/** @returns {Float32Array<ArrayBuffer> | null} */
function currentImage() {
  if (samplePixels) return samplePixels;
  return strokes.length ? rasterise(strokes) : null;
}

/** @param {Float32Array | null} probabilities */
function showAnswer(probabilities) {
  const best = probabilities ? probabilities.indexOf(Math.max(...probabilities)) : -1;
  const text = best < 0 ? "?" : String(best);
  if (verdict.value !== text) verdict.value = text;
  sure.textContent = probabilities ? `${percent(probabilities[best])} sure` : "";
  bars.forEach((bar, digit) => {
    const share = probabilities?.[digit] ?? 0;
    bar.classList.toggle("top-one", digit === best);
    setBar(bar.querySelector(".fill") ?? bar, share);
    const value = bar.querySelector(".value");
    if (value) value.textContent = probabilities ? percent(share) : "–";
  });
}

/** @param {number} share */
const percent = (share) => `${(share * 100).toFixed(share > 0.0995 ? 0 : 1)}%`;

// ------------------------------------------------------------------ drawing

/** The page's text colour, so that ink follows the light or dark theme. */
const inkColour = () => getComputedStyle(pad).color;

/**
 * Paint 8x8 ink on a small canvas that CSS enlarges.
 * @param {HTMLCanvasElement} canvas
 * @param {ArrayLike<number>} image 0 to 1
 */
function paintPixels(canvas, image) {
  const context = canvas.getContext("2d");
  if (!context) return;
  context.clearRect(0, 0, 8, 8);
  context.fillStyle = inkColour();
  for (let i = 0; i < 64; i++) {
    context.globalAlpha = image[i];
    context.fillRect(i % 8, i >> 3, 1, 1);
  }
  context.globalAlpha = 1;
}

/** @param {Float32Array | null} image */
function showSeen(image) {
  paintPixels(seen, image ?? new Float32Array(64));
}

function paintPad() {
  const size = Math.round(pad.clientWidth * devicePixelRatio);
  // Setting the size clears the canvas, which is wanted, and resets its state.
  pad.width = pad.height = size;
  const context = pad.getContext("2d");
  if (!context) return;
  context.fillStyle = context.strokeStyle = inkColour();
  if (samplePixels) {
    const cell = size / 8;
    samplePixels.forEach((ink, i) => {
      context.globalAlpha = ink;
      context.fillRect((i % 8) * cell, (i >> 3) * cell, cell, cell);
    });
    context.globalAlpha = 1;
  }
  context.lineWidth = PEN * size;
  context.lineCap = context.lineJoin = "round";
  for (const stroke of strokes) {
    context.beginPath();
    context.moveTo(stroke[0][0] * size, stroke[0][1] * size);
    for (const [x, y] of stroke) context.lineTo(x * size, y * size);
    context.stroke();
  }
  if (keyPen) {
    context.lineWidth = 2 * devicePixelRatio;
    context.beginPath();
    context.arc(keyPen.at[0] * size, keyPen.at[1] * size, (PEN * size) / 2, 0, 7);
    if (keyPen.down) context.fill();
    context.stroke();
  }
  const empty = !strokes.length && !samplePixels && !keyPen;
  element("invite", HTMLElement).style.opacity = empty ? "1" : "0";
}

function changed() {
  paintPad();
  read();
}

function clear() {
  strokes = [];
  samplePixels = null;
  pressed(null);
  if (keyPen) keyPen.down = false;
  changed();
}

/** @param {PointerEvent} event @returns {Point} */
function position(event) {
  const box = pad.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

/** @type {number | null} */
let pointer = null;

pad.addEventListener("pointerdown", (event) => {
  if (pointer !== null || event.button !== 0) return;
  pointer = event.pointerId;
  pad.setPointerCapture(pointer);
  if (samplePixels) clear();
  keyPen = null;
  strokes.push([position(event)]);
  changed();
});

pad.addEventListener("pointermove", (event) => {
  if (event.pointerId !== pointer) return;
  // Between two frames a fast pen reports several points at once; all belong to the curve.
  const events = event.getCoalescedEvents?.() ?? [];
  for (const each of events.length ? events : [event]) strokes.at(-1)?.push(position(each));
  changed();
});

for (const end of ["pointerup", "pointercancel"]) {
  pad.addEventListener(end, (event) => {
    if (/** @type {PointerEvent} */ (event).pointerId === pointer) pointer = null;
  });
}

/** @type {Record<string, Point>} */
const ARROWS = {
  ArrowLeft: [-STEP, 0],
  ArrowRight: [STEP, 0],
  ArrowUp: [0, -STEP],
  ArrowDown: [0, STEP],
};

pad.addEventListener("keydown", (event) => {
  const move = ARROWS[event.key];
  if (event.key === "Delete" || event.key === "Backspace" || event.key === "Escape") {
    clear();
  } else if (move || event.key === " ") {
    if (samplePixels) clear();
    keyPen ??= { at: [0.5, 0.25], down: false };
    if (!move) {
      keyPen.down = !keyPen.down;
      if (keyPen.down) strokes.push([[...keyPen.at]]);
    } else {
      const clamp = (/** @type {number} */ v) => Math.min(Math.max(v, PEN), 1 - PEN);
      keyPen.at = [clamp(keyPen.at[0] + move[0]), clamp(keyPen.at[1] + move[1])];
      if (keyPen.down) strokes.at(-1)?.push([...keyPen.at]);
    }
    changed();
  } else {
    return;
  }
  event.preventDefault();
});

pad.addEventListener("blur", () => {
  keyPen = null;
  paintPad();
});

element("clear", HTMLButtonElement).addEventListener("click", clear);
new ResizeObserver(paintPad).observe(pad);

// ------------------------------------------------------------------ samples

/** @type {{button: HTMLElement, canvas: HTMLCanvasElement, image: Float32Array<ArrayBuffer>}[]} */
const thumbs = [];

/** @param {HTMLElement | null} button the sample that is on the pad now */
function pressed(button) {
  for (const thumb of thumbs) {
    thumb.button.setAttribute("aria-pressed", String(thumb.button === button));
  }
}

/**
 * @param {string} id
 * @param {Sample[]} samples
 * @param {string} kind
 */
function addThumbs(id, samples, kind) {
  samples.forEach(({ label, pixels }, i) => {
    const canvas = document.createElement("canvas");
    canvas.className = "pixels";
    canvas.width = canvas.height = 8;
    const image = Float32Array.from(pixels, (v) => v / 16);
    const button = make("button", {
      type: "button",
      class: "thumb",
      "aria-pressed": "false",
      "aria-label": `${kind} ${i + 1}: a ${label}`,
      title: `Labelled ${label}`,
    });
    button.append(canvas);
    button.addEventListener("click", () => {
      strokes = [];
      keyPen = null;
      samplePixels = image;
      pressed(button);
      changed();
    });
    element(id, HTMLElement).append(button);
    thumbs.push({ button, canvas, image });
    paintPixels(canvas, image);
  });
}

async function loadSamples() {
  const url = pageData("samples");
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: the server answers ${response.status}`);
  const { samples, mistakes, held_out: heldOut } = await response.json();
  addThumbs("samples", samples, "Sample");
  addThumbs("mistakes", mistakes, "Misread sample");
  const wrong = `It gets ${mistakes.length} of ${heldOut} wrong`;
  element("mistakes-heading", HTMLElement).textContent = wrong;
}

function repaint() {
  paintPad();
  showSeen(currentImage());
  for (const { canvas, image } of thumbs) paintPixels(canvas, image);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
loadSamples().catch(showError);
runner.start();
