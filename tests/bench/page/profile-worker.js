// One thread of the micro-benchmarks: calls the export it is told to and says what that took.

/** @type {WebAssembly.Exports} */
let exports;

onmessage = async ({ data: { module, memory, name, args } }) => {
  if (module) {
    exports = (await WebAssembly.instantiate(module, { env: { memory } })).exports;
    return postMessage(0);
  }
  const start = performance.now();
  /** @type {any} */ (exports[name])(...args);
  postMessage((performance.now() - start) / 1e3);
};
