// The site's service worker. It has two jobs, and does what its own address names:
//
//   ?isolate   makes the pages cross-origin isolated on hosts that cannot send the two headers for
//              it: it adds them to every answer. WebAssembly threads need that.
//   ?offline   answers from what app/worker.js has kept when the network does not.
//
// Installed only when a visitor asks. The site builder puts it at the site's first folder, because a
// worker's reach is the folder it lies in.

const worker = /** @type {any} */ (globalThis);

const jobs = new URL(worker.location.href).searchParams;
const KEPT = "pywebgpu-site"; // also in app/worker.js
const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
};

worker.addEventListener("install", () => worker.skipWaiting());
worker.addEventListener("activate", (/** @type {any} */ event) => {
  event.waitUntil(worker.clients.claim());
});

worker.addEventListener("fetch", (/** @type {any} */ event) => {
  const { request } = event;
  if (new URL(request.url).origin !== worker.location.origin) return;
  // Browsers send this combination for their own look-ups, and refuse to fetch it from here.
  if (request.cache === "only-if-cached" && request.mode !== "same-origin") return;
  const answered = jobs.has("offline") && request.method === "GET" ? kept(request) : fetch(request);
  event.respondWith(jobs.has("isolate") ? answered.then(isolated) : answered);
});

/**
 * From the network, so that a new upload is seen at once; without one, what was kept.
 * @param {Request} request
 */
async function kept(request) {
  const url = new URL(request.url);
  url.search = url.hash = "";
  if (url.pathname.endsWith("/")) url.pathname += "index.html";
  // Not `open` alone: that would make the store again which the visitor has just removed.
  const store = (await caches.has(KEPT)) ? await caches.open(KEPT) : null;
  try {
    const response = await fetch(request);
    const fresh = response.status === 200 && (await store?.match(url));
    if (fresh) await store?.put(url, response.clone());
    return response;
  } catch (error) {
    const copy = await store?.match(url);
    if (copy) return copy;
    throw error;
  }
}

/** @param {Response} response */
function isolated(response) {
  // A redirect's answer is opaque; the browser asks again for its target.
  if (response.status === 0 || response.type === "opaqueredirect") return response;
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  const { status, statusText } = response;
  // These statuses must not carry a body.
  const body = [101, 204, 205, 304].includes(status) ? null : response.body;
  return new Response(body, { status, statusText, headers });
}
