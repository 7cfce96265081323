// The home page's list of what this device can do, each with the reason where it can not.

import { relaxedSimd, simd, threadsMissing } from "../features.js";
import { bytes, element } from "./dom.js";
import { canKeep, contents, forget, isKept, keep } from "./worker.js";

/** @typedef {{yes: boolean, reason: string}} Finding */

/** @returns {Promise<Finding>} */
async function webgpu() {
  if (!navigator.gpu) {
    const reason = globalThis.isSecureContext
      ? "This browser has no WebGPU. Models run on WebAssembly."
      : "Browsers offer WebGPU to pages served over HTTPS only. Models run on WebAssembly.";
    return { yes: false, reason };
  }
  const adapter = await navigator.gpu.requestAdapter().catch(() => null);
  if (!adapter) {
    const reason = "The browser found no graphics chip that it trusts. Models run on WebAssembly.";
    return { yes: false, reason };
  }
  const { vendor, architecture, description } = adapter.info;
  const name = description || [vendor, architecture].filter(Boolean).join(" ");
  return { yes: true, reason: name ? `Device: ${name}.` : "Compute shaders on the graphics chip." };
}

/** @returns {Finding} */
function threads() {
  const missing = threadsMissing();
  const cores = navigator.hardwareConcurrency || 1;
  if (missing === null) return { yes: true, reason: `Up to ${Math.min(cores, 8)} work together.` };
  const reason = globalThis.crossOriginIsolated
    ? "This browser's WebAssembly has none. Models run on one."
    : "The page is not cross-origin isolated, so models use one thread. Their pages can change that.";
  return { yes: false, reason };
}

/** @type {Record<string, () => Finding | Promise<Finding>>} */
const PROBES = {
  webgpu,
  simd: () =>
    simd()
      ? { yes: true, reason: "Four numbers per instruction." }
      : { yes: false, reason: "This browser is too old for it. Models need it or WebGPU." },
  relaxed: () =>
    relaxedSimd()
      ? { yes: true, reason: "Multiply and add in one step." }
      : { yes: false, reason: "Not in this browser. Plain SIMD is used." },
  threads,
};

for (const [feature, probe] of Object.entries(PROBES)) {
  const item = document.querySelector(`[data-feature=${feature}]`);
  Promise.resolve(probe()).then(({ yes, reason }) => {
    item?.querySelector(".state")?.classList.add(yes ? "yes" : "no");
    const text = item?.querySelector(".reason");
    if (text) text.textContent = reason;
    item?.setAttribute("data-yes", String(yes));
  });
}

// -- the site without a network --------------------------------------------------------------------

const offline = element("offline", HTMLElement);
const offlineText = element("offline-text", HTMLElement);
const offlineButton = element("offline-button", HTMLButtonElement);
const offlineBar = element("offline-progress", HTMLProgressElement);

async function showOffline() {
  const kept = await isKept();
  offline.dataset.kept = String(kept);
  offlineBar.hidden = true;
  if (kept) {
    offlineText.textContent = "This site is kept on this device and works without a network.";
    offlineButton.textContent = "Remove the copy";
  } else {
    const { total } = await contents();
    offlineText.textContent =
      "Keep all pages and models on this device, to use them without a network.";
    offlineButton.textContent = `Keep ${bytes(total)}`;
  }
  offlineButton.disabled = false;
}

async function toggleOffline() {
  offlineButton.disabled = true;
  try {
    if (await isKept()) {
      await forget();
    } else {
      offlineBar.hidden = false;
      await keep((loaded, total) => {
        offlineBar.max = total;
        offlineBar.value = loaded;
        offlineText.textContent = `Keeping ${bytes(loaded)} of ${bytes(total)}`;
      });
    }
    await showOffline();
  } catch (error) {
    offlineBar.hidden = true;
    offlineButton.disabled = false;
    const reason = error instanceof Error ? error.message : String(error);
    offlineText.textContent = `The site could not be kept: ${reason}`;
  }
}

if (canKeep()) {
  offline.hidden = false;
  offlineButton.addEventListener("click", toggleOffline);
  showOffline().catch((error) => {
    offlineText.textContent = `What there is to keep cannot be told: ${error.message}`;
  });
}
