// The host of codegen/wasm/profile.py in a page: workers over one shared memory, and the clock.

/** @param {string} base64 the module @param {number} pages @param {number} threads */
export async function start(base64, pages, threads) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const module = await WebAssembly.compile(bytes);
  const memory = new WebAssembly.Memory({ initial: pages, maximum: 65536, shared: true });
  const url = new URL("./profile-worker.js", import.meta.url);
  const workers = Array.from({ length: threads }, () => new Worker(url, { type: "module" }));
  await ask(workers, () => ({ module, memory }));
  return {
    /** Seconds. @param {string} name @param {number[]} args @param {number} count of threads */
    time: async (name, args, count) => {
      const took = await ask(workers.slice(0, count), (i) => ({ name, args: [i, count, ...args] }));
      return Math.max(...took);
    },
    stop: () => workers.forEach((worker) => worker.terminate()),
  };
}

/** @param {Worker[]} workers @param {(i: number) => object} message @returns {Promise<number[]>} */
const ask = (workers, message) =>
  Promise.all(workers.map((worker, i) => new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => resolve(data);
    worker.onerror = ({ message: why }) => reject(new Error(why));
    worker.postMessage(message(i));
  })));
