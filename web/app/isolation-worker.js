// A service worker that makes the site's pages cross-origin isolated on hosts that cannot send the
// two headers for it: it adds them to every answer. WebAssembly threads need that. Installed only
// when a visitor asks (app/isolation.js); the site builder puts it at the site's first folder,
// because a worker's reach is the folder it lies in.

const worker = /** @type {any} */ (globalThis);

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
  event.respondWith(withHeaders(request));
});

/** @param {Request} request */
async function withHeaders(request) {
  const response = await fetch(request);
  // A redirect's answer is opaque; the browser asks again for its target.
  if (response.status === 0 || response.type === "opaqueredirect") return response;
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  const { status, statusText } = response;
  // These statuses must not carry a body.
  const body = [101, 204, 205, 304].includes(status) ? null : response.body;
  return new Response(body, { status, statusText, headers });
}
