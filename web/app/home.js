// The home page's list of what this device can do, each with the reason where it can not.

import { relaxedSimd, simd, threadsMissing } from "../features.js";

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
    : "The page is not cross-origin isolated: its server sends no headers for that. Models run " +
      "on one thread; their pages can turn on more.";
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
