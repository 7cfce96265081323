// In which way the WebAssembly executor plays runs of one set of shapes: on how many threads, and
// what the page's own thread does meanwhile. Both are found out by trying, since other work on the
// machine decides them as much as the model does.

const SHORT_MS = 10; // longer runs lose nothing by the usual way
const AWAKE_MS = 1; // runs that take longer let the page's thread sleep
const SETTLING = 3; // runs of new shapes that are not compared: those of new code say little
const ENOUGH = 3; // trials of a way before it can win
const KEPT = 5; // the last trials of a way, and the last runs in the best one: medians count
const MARGIN = 0.9; // of the time that another way must take to win
const FAVOUR = 1.1; // and the page's own thread may take so much more than the best
const FIRST_PAUSE = 2; // runs between two trials; doubles with each that promises nothing
const LONGEST_PAUSE = 256;

/**
 * @typedef {object} Way
 * @property {number} threads
 * @property {"sleeps" | "looks" | "plays"} page what the page's thread does during a run: sleeps until
 *   it is woken; looks for the end in task after task, which is quicker by some 25 microseconds where
 *   a processor is free for it; or plays the run itself, which wakes nobody
 */

/**
 * Instead of `Ways`: always the same one, and nothing learnt from it.
 * @param {Way} way
 */
export const always = (way) => ({ next: () => way, took: () => {} });

/**
 * Threads wait for each other after every step, and in a small model that can cost more than the
 * work; so short runs try the other ways now and then. A trial is compared with the runs just
 * before it, in the best way so far: whatever else the machine does at that moment slows both.
 * Trials become rare but never end, for the machine's other work comes and goes; and what they say
 * in a bad moment, when threads had to share a processor, say, the next ones put right.
 */
export class Ways {
  /**
   * @param {number} most threads that there are
   * @param {number} cores processors of the machine
   */
  constructor(most, cores) {
    const counts = [...new Set([most, most >> 1 || 1, 1])];
    /** @type {Way[]} */
    const [usual, ...others] = counts.flatMap((threads) => [
      { threads, page: "sleeps" },
      ...(threads < cores ? [/** @type {Way} */ ({ threads, page: "looks" })] : []),
    ]);
    others.unshift({ threads: 1, page: "plays" });
    /** @type {Way} */
    this.best = usual;
    /** The others, with what each trial took over the runs before. @type {[Way, number[]][]} */
    this.others = others.map((way) => [way, []]);
    /** What the last runs in the best way took. @type {number[]} */
    this.usual = [];
    /** Runs until the next trial. */
    this.left = SETTLING;
    this.pause = FIRST_PAUSE;
    /** In hand. @type {[Way, number[]] | undefined} */
    this.trial = undefined;
  }

  /** Whether the next run is a trial, or some way has not been tried enough. */
  get comparing() {
    const worth = this.#worthTrying();
    return worth.some(([, ratios]) => this.left <= 0 || ratios.length < ENOUGH);
  }

  /** The way of the next run. */
  next() {
    if (this.left <= 0) [this.trial] = this.#worthTrying();
    return this.trial?.[0] ?? this.best;
  }

  /** @param {number} ms what the run took */
  took(ms) {
    if (this.trial) this.#tried(this.trial, ms / median(this.usual));
    else if (--this.left < this.pause) keep(this.usual, ms);
    this.trial = undefined;
  }

  /** The next one first. */
  #worthTrying() {
    const ms = median(this.usual);
    if (ms > SHORT_MS) return [];
    // What the page's thread would be held for, if it did the work of all threads.
    const alone = ms * this.best.threads;
    return this.others.filter(
      ([{ page }]) => page === "sleeps" || (page === "plays" ? alone : ms) <= AWAKE_MS,
    );
  }

  /**
   * What a trial of the way may take of the best one's time. Whoever wakes nobody need not be woken
   * either: where other work has the processors for a moment, such runs are delayed least, which
   * medians of a quiet moment do not show.
   * @param {Way} way
   */
  #margin({ page }) {
    if (page === "plays") return FAVOUR;
    return this.best.page === "plays" ? MARGIN / FAVOUR : MARGIN;
  }

  /**
   * @param {[Way, number[]]} trial
   * @param {number} ratio
   */
  #tried(trial, ratio) {
    const [way, ratios] = trial;
    keep(ratios, ratio);
    const margin = this.#margin(way);
    this.others = this.others.filter((other) => other !== trial);
    // What promises to win is not kept waiting.
    if (ratio < margin && ratios.length < ENOUGH) this.others.unshift(trial);
    else this.others.push(trial);
    if (ratios.length >= ENOUGH && median(ratios) < margin) {
      this.others = this.others.map(([other]) => [other === way ? this.best : other, []]);
      this.best = way;
      this.usual = [];
      this.pause = FIRST_PAUSE;
    } else if (ratio < margin) {
      this.pause = FIRST_PAUSE;
    } else if (this.others.every(([, { length }]) => length >= ENOUGH)) {
      this.pause = Math.min(2 * this.pause, LONGEST_PAUSE);
    }
    this.left = this.pause;
  }
}

/**
 * @param {number[]} values
 * @param {number} value
 */
function keep(values, value) {
  values.unshift(value);
  values.splice(KEPT);
}

/** @param {number[]} values */
const median = (values) => [...values].sort((x, y) => x - y)[values.length >> 1];
