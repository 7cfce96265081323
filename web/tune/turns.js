// Who may use the processors: the page's own runs first. Work of the tuning begins when no run is
// going on, none has just ended, and none is to be expected before the work is done.

const GRACE_MS = 3; // after a run: the next one often follows at once
const REMEMBERED = 5; // pauses between runs
const MARGIN_MS = 2; // that a run may come earlier than any of these
const LATE = 1.25; // so many times the longest of them, and the rhythm is lost
const REGULAR = 4; // the longest is at most so many times the shortest, or there is no rhythm
const FORGET = 0.8; // how much of an estimate is left when a piece of work took less

/** The tuning was cancelled. */
export class Cancelled extends Error {}

export class Turns {
  #runs = 0;
  #paused = false;
  #cancelled = false;
  /** Changes with every run that begins. */
  epoch = 0;
  /** When the last run ended. */
  #since = -Infinity;
  /** Of the page, between its runs, the latest last. @type {number[]} */
  #pauses = [];
  /** What pieces of work of a kind are expected to take. @type {Map<string, number>} */
  #needs = new Map();
  /** @type {Set<() => void>} */
  #waiting = new Set();

  /** A run begins. */
  enter() {
    const pause = performance.now() - this.#since;
    // Runs that follow each other at once are as good as one.
    if (!this.#runs && pause > GRACE_MS && pause < Infinity) {
      this.#pauses = [...this.#pauses, pause].slice(-REMEMBERED);
    }
    this.#runs++;
    this.epoch++;
  }

  /** A run has ended. */
  leave() {
    this.#since = performance.now();
    if (!--this.#runs) setTimeout(() => this.#wake(), GRACE_MS);
  }

  /** @param {boolean} paused */
  pause(paused) {
    this.#paused = paused;
    this.#wake();
  }

  cancel() {
    this.#cancelled = true;
    this.#wake();
  }

  get cancelled() {
    return this.#cancelled;
  }

  get paused() {
    return this.#paused;
  }

  /**
   * Do a piece of work when it is the tuning's turn; rejects with `Cancelled` instead.
   * @template T
   * @param {string} kind pieces of one kind take about as long
   * @param {() => Promise<T>} work
   * @returns {Promise<T>}
   */
  async take(kind, work) {
    const expected = this.#needs.get(kind) ?? 0;
    await this.idle(expected);
    const start = performance.now();
    try {
      return await work();
    } finally {
      this.#needs.set(kind, Math.max(performance.now() - start, FORGET * expected));
    }
  }

  /**
   * Resolves when nobody else wants to run, nor will for so long; rejects with `Cancelled`.
   * @param {number} [ms]
   */
  async idle(ms = 0) {
    for (let left; (left = this.#left(ms)) > 0; ) await this.#wait(left);
    if (this.#cancelled) throw new Cancelled("cancelled");
  }

  /**
   * Milliseconds until it is the turn of work that takes so long, if nothing happens meanwhile.
   * @param {number} needed
   */
  #left(needed) {
    if (this.#cancelled) return 0;
    if (this.#runs || this.#paused) return Infinity;
    const ended = performance.now() - this.#since;
    if (ended < GRACE_MS) return GRACE_MS - ended;
    const [least, most] = [Math.min(...this.#pauses), Math.max(...this.#pauses)];
    if (this.#pauses.length < REMEMBERED || most > REGULAR * least) return 0;
    const until = least - MARGIN_MS;
    // What is too long for any pause is best begun with one.
    if (ended + Math.min(needed, until - 2 * GRACE_MS) <= until) return 0;
    return Math.max(0, LATE * most - ended);
  }

  /** @param {number} ms at most */
  #wait(ms) {
    return new Promise((resolve) => {
      /** @type {ReturnType<typeof setTimeout> | undefined} */
      let timer;
      const go = () => {
        clearTimeout(timer);
        this.#waiting.delete(go);
        resolve(null);
      };
      this.#waiting.add(go);
      if (ms < Infinity) timer = setTimeout(go, ms);
    });
  }

  #wake() {
    for (const go of this.#waiting) go();
  }
}
