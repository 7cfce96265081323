// The page for image classifiers: a picture dropped, pasted, chosen, or seen by the camera; the
// likeliest classes as bars. data/NAME/labels.json says what the model's classes are called and how
// it wants its pixels: {"labels", "mean", "std", "logits", "samples"}.

import { Tensor } from "../pywebgpu.js";
import { element, make, newestOnly, pageData, setBar, showError } from "./dom.js";
import { Runner } from "./runner.js";

/**
 * @typedef {object} Labels
 * @property {string[]} labels the classes' names, in the order of the output
 * @property {number[]} mean subtracted from red, green and blue in 0..1
 * @property {number[]} std divided by, after that
 * @property {boolean} [logits] the output is scores and not probabilities
 * @property {string[]} [samples] pictures beside labels.json
 */

const BARS = 5;
const SHOWN = 384; // side of the preview, in pixels

const view = element("view", HTMLCanvasElement);
const video = element("video", HTMLVideoElement);
const invite = element("invite", HTMLElement);
const verdict = element("verdict", HTMLOutputElement);
const sure = element("sure", HTMLElement);
const bars = element("bars", HTMLElement);
const cameraButton = element("camera", HTMLButtonElement);
const drop = element("drop", HTMLElement);

const labelsUrl = new URL(pageData("labels"), document.baseURI);
/** @type {Labels | null} */
let known = null;
/** What is looked at. @type {ImageBitmap | HTMLVideoElement | null} */
let source = null;
/** @type {MediaStream | null} */
let stream = null;
/** How often something was chosen to look at: of what loads slowly, only the last one counts. */
let taken = 0;

// -- looking ---------------------------------------------------------------------------------------

/** Classify what is there; with the camera, again and again. */
const look = newestOnly(async () => {
  const input = runner.session?.inputMetadata[0];
  if (!source || !known || !input) return;
  try {
    const outputs = await runner.run({ [input.name]: pixels(source, input.shape, known) });
    const [first] = Object.values(outputs ?? {});
    if (first) showAnswer(known.logits ? softmax(first.data) : first.data);
  } catch (error) {
    stopCamera();
    throw error;
  }
  if (stream) requestAnimationFrame(look);
});
const runner = new Runner(look);

/**
 * The middle square as the model wants it, and on the page.
 * @param {ImageBitmap | HTMLVideoElement} from
 * @param {(number | string)[]} shape [batch, 3, height, width]
 * @param {Labels} labels
 */
function pixels(from, shape, { mean, std }) {
  const [height, width] = shape.slice(2).map((size) => (typeof size === "number" ? size : 224));
  const [w, h] =
    from instanceof HTMLVideoElement
      ? [from.videoWidth, from.videoHeight]
      : [from.width, from.height];
  const side = Math.min(w, h);
  /** @param {CanvasRenderingContext2D | OffscreenCanvasRenderingContext2D} context */
  const paint = (context, toWidth = SHOWN, toHeight = SHOWN) => {
    context.imageSmoothingQuality = "high";
    context.drawImage(from, (w - side) / 2, (h - side) / 2, side, side, 0, 0, toWidth, toHeight);
  };
  view.width = view.height = SHOWN;
  const shown = view.getContext("2d");
  const small = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  if (!shown || !small) throw new Error("this browser gives no canvas to paint on");
  paint(shown);
  invite.hidden = true;
  paint(small, width, height);
  const rgba = small.getImageData(0, 0, width, height).data;
  const plane = width * height;
  const data = new Float32Array(3 * plane);
  for (let channel = 0; channel < 3; channel++) {
    for (let i = 0; i < plane; i++) {
      data[channel * plane + i] = (rgba[4 * i + channel] / 255 - mean[channel]) / std[channel];
    }
  }
  return new Tensor("float32", data, [1, 3, height, width]);
}

/** @param {Float32Array} scores */
function softmax(scores) {
  const top = Math.max(...scores);
  const grown = scores.map((score) => Math.exp(score - top));
  const sum = grown.reduce((a, b) => a + b, 0);
  return grown.map((value) => value / sum);
}

/** @param {Float32Array} probabilities */
function showAnswer(probabilities) {
  const names = known?.labels ?? [];
  const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]);
  const text = names[order[0]] ?? `class ${order[0]}`;
  if (verdict.value !== text) verdict.value = text;
  sure.textContent = `${percent(probabilities[order[0]])} sure`;
  [...bars.children].forEach((row, rank) => {
    const index = order[rank];
    const [name, track, value] = row.children;
    row.classList.toggle("top-one", rank === 0);
    name.textContent = names[index] ?? `class ${index}`;
    setBar(track.children[0], probabilities[index]);
    value.textContent = percent(probabilities[index]);
  });
}

/** @param {number} share */
const percent = (share) => `${(share * 100).toFixed(share > 0.0995 ? 0 : 1)}%`;

// -- pictures --------------------------------------------------------------------------------------

/** @param {Blob} blob */
async function take(blob) {
  stopCamera();
  const turn = ++taken;
  try {
    const picture = await createImageBitmap(blob);
    if (turn !== taken) return;
    source = picture;
    showError(null);
  } catch {
    showError(new Error("This is not a picture that the browser can read."));
    return;
  }
  await look();
}

/** @param {string} url */
async function takeSample(url) {
  const turn = ++taken;
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: the server answers ${response.status}`);
  const picture = await response.blob();
  if (turn === taken) await take(picture);
}

/** @param {DataTransfer | null} transfer */
function takeFirst(transfer) {
  const file = [...(transfer?.files ?? [])].find(({ type }) => type.startsWith("image/"));
  if (file) take(file);
  else if (transfer?.files.length) showError(new Error("This file is not a picture."));
}

element("file", HTMLInputElement).addEventListener("change", (event) => {
  const [file] = /** @type {HTMLInputElement} */ (event.target).files ?? [];
  if (file) take(file);
});
for (const name of ["dragover", "dragleave", "drop"]) {
  drop.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragover");
    if (name === "drop") takeFirst(/** @type {DragEvent} */ (event).dataTransfer);
  });
}
document.addEventListener("paste", (event) => takeFirst(event.clipboardData));

// -- the camera ------------------------------------------------------------------------------------

async function startCamera() {
  taken++;
  if (!navigator.mediaDevices) {
    throw new Error("Browsers give the camera to pages served over HTTPS only.");
  }
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    const name = error instanceof DOMException ? error.name : "";
    if (name === "NotFoundError") throw new Error("There is no camera on this device.");
    if (name === "NotAllowedError") throw new Error("The camera was not allowed for this page.");
    throw error;
  }
  video.srcObject = stream;
  try {
    await video.play();
  } catch (error) {
    stopCamera();
    throw error;
  }
  source = video;
  cameraButton.textContent = "Stop the camera";
  cameraButton.setAttribute("aria-pressed", "true");
  showError(null);
  look();
}

function stopCamera() {
  if (!stream) return;
  for (const track of stream.getTracks()) track.stop();
  stream = null;
  source = null;
  video.srcObject = null;
  cameraButton.textContent = "Use the camera";
  cameraButton.setAttribute("aria-pressed", "false");
}

cameraButton.addEventListener("click", async () => {
  if (stream) return stopCamera();
  cameraButton.disabled = true; // until the visitor has answered the browser's question
  await startCamera().catch(showError);
  cameraButton.disabled = false;
});
// A hidden page has no business with the camera.
document.addEventListener("visibilitychange", () => document.hidden && stopCamera());

// -- start -----------------------------------------------------------------------------------------

async function loadLabels() {
  const response = await fetch(labelsUrl);
  if (!response.ok) throw new Error(`${labelsUrl.pathname}: the server answers ${response.status}`);
  known = /** @type {Labels} */ (await response.json());
  const rows = Array.from({ length: Math.min(BARS, known.labels.length) }, () =>
    make(
      "li",
      {},
      make("span", { class: "class" }, "–"),
      make("div", { class: "track" }, make("div", { class: "fill" })),
      make("span", { class: "value" }, "–"),
    ),
  );
  bars.replaceChildren(...rows);
  const samples = (known.samples ?? []).map((name) => {
    const url = new URL(name, labelsUrl).href;
    const label = name.replace(/\.\w+$/, "");
    const image = make("img", { src: url, alt: label, width: "64", height: "64" });
    const button = make("button", { type: "button", class: "thumb" }, image);
    button.addEventListener("click", () => takeSample(url).catch(showError));
    return button;
  });
  element("samples", HTMLElement).replaceChildren(...samples);
  await look();
  // The page begins with a picture, so that a visitor sees at once what it does.
  const [first] = known.samples ?? [];
  if (first && taken === 0) await takeSample(new URL(first, labelsUrl).href);
}

loadLabels().catch(showError);
runner.start();
