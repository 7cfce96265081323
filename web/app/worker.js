// The two things that a service worker can do for this site: threads on hosts without special
// headers, and pages without a network. Nothing is installed before the visitor asks, and each can
// be taken away again.

const ROOT = new URL("../", import.meta.url);
const KEPT = "pywebgpu-site"; // also in site-worker.js
const LANES = 4;

/** @typedef {"isolate" | "offline"} Job */
/** @typedef {{files: Record<string, number>, models: {bundle: string, bytes: number}[]}} Contents */

/** Can there be a service worker at all? */
const possible = () => globalThis.isSecureContext && "serviceWorker" in navigator;

/** The jobs that the installed worker does. @returns {Promise<Set<Job>>} */
async function currentJobs() {
  const registration = possible() ? await navigator.serviceWorker.getRegistration(ROOT) : null;
  const active = registration?.active ?? registration?.waiting ?? registration?.installing;
  const names = active ? new URL(active.scriptURL).searchParams.keys() : [];
  return new Set(/** @type {Iterable<Job>} */ (names));
}

/**
 * Install the worker for one job more or less; it is taken away when none is left.
 * @param {Job} job
 * @param {boolean} on
 */
async function setJob(job, on) {
  const jobs = await currentJobs();
  if (on) jobs.add(job);
  else jobs.delete(job);
  if (jobs.size === 0) {
    const registration = await navigator.serviceWorker.getRegistration(ROOT);
    await registration?.unregister();
    return;
  }
  const url = new URL("site-worker.js", ROOT);
  url.search = [...jobs].sort().join("&");
  await activated(await navigator.serviceWorker.register(url));
}

// -- threads ---------------------------------------------------------------------------------------

/** Can a service worker make this page isolated? */
export const canIsolate = () => !globalThis.crossOriginIsolated && possible();

/** Install the worker and load the page again, now through it. */
export async function isolate() {
  await setJob("isolate", true);
  location.reload();
}

/** Is this page isolated by the worker? */
export const isIsolatedByWorker = async () =>
  Boolean(globalThis.crossOriginIsolated) && (await currentJobs()).has("isolate");

/** Stop that, and load the page again without. */
export async function stopIsolating() {
  await setJob("isolate", false);
  location.reload();
}

// -- offline ---------------------------------------------------------------------------------------

/** Can the site be kept here? */
export const canKeep = () => possible() && "caches" in globalThis;

/** Is it? */
export const isKept = async () => (await currentJobs()).has("offline");

/** What there is to keep, and how many bytes that is. */
export async function contents() {
  const response = await fetch(new URL("site.json", ROOT), { cache: "no-cache" });
  if (!response.ok) throw new Error(`site.json: the server answers ${response.status}`);
  const { files, models } = /** @type {Contents} */ (await response.json());
  const sizes = [...Object.values(files), ...models.map((model) => model.bytes)];
  return { files, models, total: sizes.reduce((sum, bytes) => sum + bytes, 0) };
}

/**
 * Keep every page and model of the site on this device, and answer from there without a network.
 * @param {(loaded: number, total: number) => void} onProgress in bytes
 */
export async function keep(onProgress) {
  const { files, models, total } = await contents();
  // Asks the browser not to evict it when space runs out; it works without, too.
  await navigator.storage?.persist?.().catch(() => false);
  let loaded = 0;
  const store = await caches.open(KEPT);
  const names = [...Object.keys(files), "site.json"];
  const lane = async () => {
    for (let name = names.pop(); name !== undefined; name = names.pop()) {
      const url = new URL(name, ROOT);
      const response = await fetch(url, { cache: "no-cache" });
      if (!response.ok) {
        names.length = 0; // the other lanes need not go on
        throw new Error(`${name}: the server answers ${response.status}`);
      }
      await store.put(url, response);
      loaded += files[name] ?? 0;
      onProgress(loaded, total);
    }
  };
  // All lanes have ended before an error is told: none of them speaks after it.
  const ends = await Promise.allSettled(Array.from({ length: LANES }, lane));
  for (const end of ends) if (end.status === "rejected") throw end.reason;
  // Only now: pages that keep nothing need not load the runtime for it.
  const { prefetch } = await import("../pywebgpu.js");
  for (const { bundle, bytes } of models) {
    const before = loaded;
    await prefetch(new URL(bundle, ROOT), {
      onProgress: (progress) => onProgress((loaded = before + progress.loaded), total),
    });
    loaded = before + bytes;
  }
  await setJob("offline", true);
}

/** Forget the pages; models stay in the runtime's cache, where each visit would put them again. */
export async function forget() {
  await setJob("offline", false);
  await caches.delete(KEPT);
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
