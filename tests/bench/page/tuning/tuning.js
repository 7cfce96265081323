// One model, tuned while the page runs it every now and then. `window.tuneModel` gives what
// tests/bench/tuning.py makes a row of; times in milliseconds since tuning was asked for.

import { InferenceSession, Tensor } from "../web/pywebgpu.js";

// Before and after: as many runs as the time allows, within these.
const IDLE_MS = 10_000;
const LEAST_RUNS = 20;
const MOST_RUNS = 200;
const WARM_RUNS = 10;
const LEAST_GAP_MS = 30;

const sleep = (/** @type {number} */ ms) => new Promise((resolve) => setTimeout(resolve, ms));

window.tuneModel = async ({ url, provider, ports, budget }) => {
  const session = await InferenceSession.create(url, {
    executionProviders: [provider],
    tuned: false,
  });
  const feeds = Object.fromEntries(
    Object.entries(ports).map(([name, { type, dims }]) => {
      const count = dims.reduce((a, b) => a * b, 1);
      const values = Array.from({ length: count }, () => (type === "float32" ? Math.random() : 1));
      return [name, new Tensor(type, values, dims)];
    }),
  );
  const once = async () => {
    const start = performance.now();
    await session.run(feeds);
    return performance.now() - start;
  };
  const warm = [];
  for (let i = 0; i < WARM_RUNS; i++) warm.push(await once());
  // A page has something else to do about as long as its model runs.
  const gap = Math.max(LEAST_GAP_MS, ...warm.slice(5));
  const series = async (/** @type {() => boolean} */ more) => {
    const times = [];
    while (more()) {
      times.push([performance.now(), await once()]);
      await sleep(gap);
    }
    return times;
  };
  const idle = () => {
    const end = performance.now() + IDLE_MS;
    let runs = 0;
    return series(() => runs++ < (performance.now() < end ? MOST_RUNS : LEAST_RUNS));
  };
  const before = await idle();

  const start = performance.now();
  const seen = [];
  let python = null;
  const onProgress = ({ stage }) => {
    if (stage !== "python") python ??= performance.now() - start;
    const saved = tuning?.rows.reduce((sum, r) => sum + r.calls * (r.default_ms - r.best_ms), 0);
    seen.push([performance.now() - start, saved ?? 0]);
  };
  /** @type {Awaited<ReturnType<typeof session.tune>> | undefined} */
  let tuning;
  tuning = await session.tune({ budget, onProgress });
  let going = true;
  tuning.ended.then(() => (going = false));
  const during = await series(() => going);
  const report = await tuning.finished;
  const total = performance.now() - start;
  const after = await idle();
  const ms = (series) => series.map(([, ms]) => ms);
  return {
    info: session.info,
    python,
    total,
    seen,
    report,
    before: ms(before),
    during: during.map(([at, ms]) => [at - start, ms]),
    after: ms(after),
    gap,
  };
};
