// Threads on hosts without special headers: offers a service worker that adds them to this site's
// pages, and takes it away again. Nothing is installed before the visitor asks.

const WORKER = new URL("../isolation-worker.js", import.meta.url);

/** Can a service worker make this page isolated? */
export const canIsolate = () =>
  !globalThis.crossOriginIsolated && globalThis.isSecureContext && "serviceWorker" in navigator;

/** Install the worker and load the page again, now through it. */
export async function isolate() {
  const registration = await navigator.serviceWorker.register(WORKER);
  await activated(registration);
  location.reload();
}

/** Is this page isolated by the worker? */
export const isIsolatedByWorker = () =>
  Boolean(globalThis.crossOriginIsolated && navigator.serviceWorker?.controller);

/** Take the worker away and load the page again without it. */
export async function stopIsolating() {
  const registration = await navigator.serviceWorker.getRegistration(WORKER);
  await registration?.unregister();
  location.reload();
}

/** @param {ServiceWorkerRegistration} registration */
function activated(registration) {
  const worker = registration.installing ?? registration.waiting ?? registration.active;
  if (!worker || worker.state === "activated") return Promise.resolve();
  return new Promise((resolve, reject) => {
    worker.addEventListener("statechange", () => {
      if (worker.state === "activated") resolve(undefined);
      if (worker.state === "redundant") reject(new Error("the browser refused the service worker"));
    });
  });
}
