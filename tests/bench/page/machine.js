// Whether the machine gives a page the processors that it counts on, at this moment. Processors of a
// virtual machine can be two threads of one core for some seconds, and neighbours come and go: what
// is measured meanwhile says nothing about a runtime.

import { start } from "./profile.js";

const PROBE_S = 0.002;
const WHOLE = 0.85; // of the multiply-adds that so many threads have done at best
const REST_MS = 50;

/** @param {number} ms */
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

export class Machine {
  /** Turns that were thrown away. */
  repeated = 0;
  /** Seconds of a probe on one thread, at best. */
  best = Infinity;

  /**
   * @param {Awaited<ReturnType<typeof start>>} host
   * @param {number} threads
   * @param {number} patienceMs to wait for the machine, in all
   */
  constructor(host, threads, patienceMs) {
    this.host = host;
    this.threads = threads;
    this.patienceMs = patienceMs;
    this.count = 1000;
  }

  /** @param {{code: string, pages: number, patienceMs: number}} options @param {number} threads */
  static async start({ code, pages, patienceMs }, threads) {
    const machine = new Machine(await start(code, pages, threads), threads, patienceMs);
    for (let i = 0; i < 20; i++) {
      const seconds = await machine.#probe(1);
      if (seconds < PROBE_S) machine.count *= 2;
      else machine.best = Math.min(machine.best, seconds);
    }
    return machine;
  }

  /** @param {number} threads */
  #probe(threads) {
    return this.host.time("fma", [this.count], threads);
  }

  async #isWhole() {
    this.best = Math.min(this.best, await this.#probe(1));
    return this.best / (await this.#probe(this.threads)) > WHOLE;
  }

  /**
   * What `turn` gives at a moment when the processors are there, before it and after it; at any
   * moment once the patience is over.
   * @template T
   * @param {() => Promise<T>} turn
   */
  async undisturbed(turn) {
    for (;;) {
      const start = performance.now();
      const there = this.patienceMs <= 0 || (await this.#isWhole());
      if (there) {
        const result = await turn();
        if (this.patienceMs <= 0 || (await this.#isWhole())) return result;
        this.repeated++;
      }
      await pause(REST_MS);
      this.patienceMs -= performance.now() - start;
    }
  }

  stop() {
    this.host.stop();
  }
}
