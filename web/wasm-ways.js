// In which way the WebAssembly executor plays runs of one set of shapes: on how many threads, and
// how the page learns of the end. Both are found out by trying, since other work on the machine
// decides them as much as the model does.

const SHORT_MS = 10; // longer runs lose nothing by the usual way
const SETTLING = 3; // runs of new shapes that are not compared
const EACH = 3; // runs of each way in a comparison: the median counts
const FIRST_PAUSE = 64; // runs until ways are compared again; doubles each time
const LONGEST_PAUSE = 512;

/**
 * @typedef {object} Way
 * @property {number} threads
 * @property {boolean} watch the page looks for the end in task after task, instead of sleeping
 *   until it is woken: quicker by some 25 microseconds where a processor is free for it
 */

/** Instead of `Ways`: one thread, and nothing learnt from it. */
export const ALONE = { next: () => ({ threads: 1, watch: false }), took: () => {} };

/**
 * Threads wait for each other after every step, and in a small model that can cost more than the
 * work; so short runs try all ways in turn, and the quickest by median stays. Since the machine's
 * other work comes and goes, they are compared again later, ever more seldom.
 */
export class Ways {
  /**
   * @param {number} most threads that there are
   * @param {number} cores processors of the machine
   */
  constructor(most, cores) {
    const counts = [...new Set([1, most >> 1 || 1, most])];
    /** @type {Way[]} */
    this.all = counts.flatMap((threads) => [
      { threads, watch: false },
      ...(threads < cores ? [{ threads, watch: true }] : []),
    ]);
    /** @type {Way} */
    this.best = { threads: most, watch: false };
    /** Runs until the next comparison; those of new code say little. */
    this.pause = SETTLING;
    this.longer = FIRST_PAUSE;
    /** Of the comparison in hand, the last one first. @type {Way[]} */
    this.left = [];
    /** @type {Map<Way, number[]>} */
    this.times = new Map();
  }

  /** The way of the next run. */
  next() {
    return this.left.at(-1) ?? this.best;
  }

  /** @param {number} ms what the run took */
  took(ms) {
    const way = this.left.pop();
    if (!way) {
      if (ms <= SHORT_MS && this.all.length > 1 && --this.pause < 0) this.#compare();
      return;
    }
    this.times.get(way)?.push(ms);
    if (ms > SHORT_MS) this.left = [];
    else if (!this.left.length) {
      const median = (/** @type {number[]} */ times) => times.sort((x, y) => x - y)[EACH >> 1];
      this.best = [...this.times].sort(([, x], [, y]) => median(x) - median(y))[0][0];
    }
  }

  #compare() {
    this.pause = this.longer;
    this.longer = Math.min(2 * this.longer, LONGEST_PAUSE);
    this.times = new Map(this.all.map((way) => [way, []]));
    this.left = Array.from({ length: EACH }, () => this.all).flat();
  }
}
