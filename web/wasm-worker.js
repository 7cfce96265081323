// One thread of the WebAssembly executor. It plays what it is told and knows nothing of models:
// addresses, sizes and the module all come from wasm.js. No imports, so that it starts at once.

/**
 * @typedef {object} SharedStart a thread among several over one memory
 * @property {"shared"} kind
 * @property {WebAssembly.Module} module
 * @property {WebAssembly.Memory} memory
 * @property {number} thread
 * @property {{generation: number, done: number}} control i32 indices of what the host tells this
 *   thread, and of how many have finished
 * @property {number} generation what the host told last: the next run changes it
 * @property {boolean} tell say "done" by message, since the host cannot wait on memory
 * @property {boolean} spin a processor is free for this thread to look for the next run
 */
/**
 * @typedef {object} Memory a memory of its own, for the only thread
 * @property {"memory"} kind
 * @property {number} pages
 */
/**
 * @typedef {object} OwnStart the only thread, with the memory that it was told to make
 * @property {"own"} kind
 * @property {WebAssembly.Module} module
 */
/**
 * @typedef {object} Write bytes to keep, e.g. weights
 * @property {"write"} kind
 * @property {number} address
 * @property {Uint8Array} data
 */
/**
 * @typedef {object} Run
 * @property {"run"} kind
 * @property {number} pages that the memory must have
 * @property {[number, ArrayBufferView][]} inputs address and content
 * @property {[number, number][]} outputs address and bytes
 */
/**
 * @typedef {object} Swap another module over the memory of the only thread
 * @property {"swap"} kind
 * @property {WebAssembly.Module} module
 */
/** @typedef {SharedStart | Memory | OwnStart | Write | Run | Swap} Message */

const SPIN_MS = 0.1; // a thread looks so long for the next run before it goes to sleep
const LOOKS = 100; // between two looks at the clock
const LONGEST_REST = 1024; // runs without looking, at most

/** @type {WebAssembly.Memory} */
let memory;
/** @type {(thread: number, threads: number) => void} */
let run;

/** @param {WebAssembly.Module} module */
async function instantiate(module) {
  const instance = await WebAssembly.instantiate(module, { env: { memory } });
  run = /** @type {typeof run} */ (instance.exports.run);
}

/**
 * How a thread waits for the next run. Waking up takes longer than a page needs between two short
 * runs: who still looks notices the next one at once. Who looked in vain, because the page had other
 * things to do or no processor was free, does so ever more seldom.
 */
class Rest {
  left = 0;
  longer = 1;

  /**
   * Until `words[index]` is no longer `seen`.
   * @param {Int32Array} words
   * @param {number} index
   * @param {number} seen
   * @param {boolean} look a while before going to sleep
   */
  until(words, index, seen, look) {
    if (look && --this.left < 0) {
      const end = performance.now() + SPIN_MS;
      do {
        for (let i = 0; i < LOOKS; i++) {
          if (Atomics.load(words, index) === seen) continue;
          this.longer = 1;
          return;
        }
      } while (performance.now() < end);
      this.left = this.longer;
      this.longer = Math.min(2 * this.longer, LONGEST_REST);
    }
    Atomics.wait(words, index, seen);
  }
}

/** @type {{[K in Message["kind"]]: (message: any) => Promise<void> | void}} */
const HANDLERS = {
  /** @param {SharedStart} message */
  async shared({ module, memory: shared, thread, control, generation, tell, spin }) {
    memory = shared;
    const words = new Int32Array(memory.buffer, 0, 64);
    // The host changes this thread's word once per run that the thread takes part in, and only after
    // every thread of the last run has said "done": starting from the value it had then, no run can
    // be missed. Its low four bits say how many threads take part, in one word, so that the two
    // cannot be mixed up; none means that a message waits to be read.
    await instantiate(module);
    postMessage({ ready: true });
    const rest = new Rest();
    for (;;) {
      rest.until(words, control.generation, generation, spin);
      generation = Atomics.load(words, control.generation);
      const threads = generation & 15;
      if (!threads) return;
      run(thread, threads);
      if (Atomics.add(words, control.done, 1) < threads - 1) continue;
      if (tell) postMessage({ done: true });
      else Atomics.notify(words, control.done);
    }
  },
  /** @param {Memory} message */
  memory({ pages }) {
    memory = new WebAssembly.Memory({ initial: pages });
  },
  /** @param {OwnStart} message */
  async own({ module }) {
    await instantiate(module);
    postMessage({ ready: true });
  },
  /** @param {Swap} message */
  async swap({ module }) {
    await instantiate(module);
    postMessage({ ready: true });
  },
  /** @param {Write} message */
  write({ address, data }) {
    new Uint8Array(memory.buffer, address, data.length).set(data);
  },
  /** @param {Run} message */
  run({ pages, inputs, outputs }) {
    const missing = pages - memory.buffer.byteLength / 65536;
    if (missing > 0) memory.grow(missing);
    for (const [address, { buffer, byteOffset, byteLength }] of inputs) {
      new Uint8Array(memory.buffer, address).set(new Uint8Array(buffer, byteOffset, byteLength));
    }
    run(0, 1);
    const results = outputs.map(([address, bytes]) => memory.buffer.slice(address, address + bytes));
    postMessage({ done: true, results }, { transfer: results });
  },
};

// Messages in order: a run that arrives while the module is being instantiated waits for it.
let last = Promise.resolve();
onmessage = ({ data }) => {
  last = last
    .then(() => HANDLERS[/** @type {Message["kind"]} */ (data.kind)](data))
    .catch((error) => postMessage({ failed: String(error) }));
};
