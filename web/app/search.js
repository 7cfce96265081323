// The semantic search page: sentences and a query become embeddings in this page; the sentences are
// ranked by the cosine between theirs and the query's.

import { Tensor } from "../pywebgpu.js";
import { element, make, milliseconds, pageData, setBar, showError } from "./dom.js";
import { Runner } from "./runner.js";

/** @typedef {{encode(text: string): {ids: number[]}}} Tokenizer */

const BATCH = 8;
const MAX_TOKENS = 256; // longer text is cut, as the model's own tokenizer settings do
const ROUND = 8; // sequences are padded to a multiple, so that few different shapes occur
const PAUSE_MS = 120; // after the last key stroke

const query = element("query", HTMLInputElement);
const sentences = element("sentences", HTMLTextAreaElement);
const ranking = element("ranking", HTMLElement);
const status = element("status", HTMLElement);

/** Embeddings of sentences that have been read, on whichever executor. */
/** @type {Map<string, Float32Array>} */
const known = new Map();
/** @type {Tokenizer | null} */
let tokenizer = null;

/** The model or its tokenizer could not be loaded. */
let failed = false;

const runner = new Runner(() => {
  failed = false;
  // After a switch the query is read again, so that the new executor shows its time and result.
  known.delete(queryText());
  update();
});

const queryText = () => query.value.trim();

async function loadTokenizer() {
  const folder = pageData("tokenizer");
  const json = async (/** @type {string} */ name) => {
    const response = await fetch(folder + name);
    if (!response.ok) throw new Error(`${folder}${name}: the server answers ${response.status}`);
    return response.json();
  };
  const library = new URL("../vendor/tokenizers.min.mjs", import.meta.url).href;
  const [module, settings, config] = await Promise.all([
    import(library),
    json("tokenizer.json"),
    json("tokenizer_config.json"),
  ]);
  // Padding and cutting are done here, by batch.
  return /** @type {Tokenizer} */ (
    new module.Tokenizer({ ...settings, padding: null, truncation: null }, config)
  );
}

/**
 * @param {Tokenizer} tokenizer
 * @param {string} text
 */
function tokens(tokenizer, text) {
  const { ids } = tokenizer.encode(text);
  // Keep the closing [SEP] when cutting.
  return ids.length > MAX_TOKENS ? [...ids.slice(0, MAX_TOKENS - 1), ids[ids.length - 1]] : ids;
}

/**
 * Embed texts of similar length in one run.
 * @param {number[][]} batch token ids
 * @param {boolean} timed
 * @returns {Promise<Float32Array[] | null>}
 */
async function embed(batch, timed) {
  const longest = Math.max(...batch.map((ids) => ids.length));
  const length = Math.ceil(longest / ROUND) * ROUND;
  const ids = new BigInt64Array(batch.length * length);
  const mask = new BigInt64Array(batch.length * length);
  batch.forEach((row, b) => {
    row.forEach((id, i) => {
      ids[b * length + i] = BigInt(id);
      mask[b * length + i] = 1n;
    });
  });
  const dims = [batch.length, length];
  const outputs = await runner.run(
    {
      input_ids: new Tensor("int64", ids, dims),
      attention_mask: new Tensor("int64", mask, dims),
    },
    { timed },
  );
  if (!outputs) return null;
  const { data, dims: shape } = outputs.sentence_embedding;
  return batch.map((_, b) => data.slice(b * shape[1], (b + 1) * shape[1]));
}

/**
 * @param {ArrayLike<number>} a
 * @param {ArrayLike<number>} b
 */
function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

const lines = () => [...new Set(sentences.value.split("\n").map((s) => s.trim()))].filter(Boolean);

// ------------------------------------------------------------------ keeping the ranking current

let pending = false;
let busy = false;

/** Bring the ranking up to date with what is typed; calls during a run only note the change. */
async function update() {
  pending = true;
  if (busy || !tokenizer || !runner.session) return;
  busy = true;
  document.documentElement.dataset.ranking = "busy";
  try {
    while (pending) {
      pending = false;
      await updateOnce(tokenizer);
    }
    showError(null);
    document.documentElement.dataset.ranking = "done";
  } catch (error) {
    status.textContent = "";
    showError(error);
    document.documentElement.dataset.ranking = "failed";
  } finally {
    busy = false;
  }
}

/** @param {Tokenizer} tokenizer */
async function updateOnce(tokenizer) {
  const text = queryText();
  const start = performance.now();
  // New lines appear at once, without a score.
  rank(text);
  if (text && !known.has(text)) {
    const found = await embed([tokens(tokenizer, text)], true);
    if (!found) return;
    known.set(text, found[0]);
  }
  const fresh = lines()
    .filter((line) => !known.has(line))
    .map((line) => ({ line, ids: tokens(tokenizer, line) }))
    .sort((a, b) => a.ids.length - b.ids.length);
  for (let done = 0; done < fresh.length && !pending; done += BATCH) {
    status.textContent = `${done} of ${fresh.length} read…`;
    const batch = fresh.slice(done, done + BATCH);
    const rows = batch.map(({ ids }) => ids);
    const found = await embed(rows, false);
    if (!found) break;
    batch.forEach(({ line }, i) => known.set(line, found[i]));
    rank(text);
  }
  rank(text);
  if (pending) return;
  const unread = !runner.session;
  status.textContent = unread ? "" : `${lines().length} in ${milliseconds(performance.now() - start)}`;
}

/** @param {string} text */
function rank(text) {
  const wanted = known.get(text);
  const scored = lines()
    .map((line) => {
      const embedding = known.get(line);
      return { line, score: wanted && embedding ? dot(wanted, embedding) : NaN };
    });
  // Lines that have not been read yet stay below the others, in their own order.
  if (wanted) scored.sort((a, b) => (b.score || -2) - (a.score || -2));
  const old = new Map(
    [...ranking.children].map((item) => [item.querySelector(".sentence")?.textContent, item]),
  );
  const items = scored.map(({ line, score }, place) => {
    const item = old.get(line) ?? row(line);
    item.classList.toggle("top-one", Boolean(wanted) && place === 0);
    setBar(item.querySelector(".fill") ?? item, score || 0);
    const value = item.querySelector(".value");
    const unknown = !text ? "" : failed ? "–" : "…";
    const shown = Number.isNaN(score) ? unknown : score.toFixed(3).replace("-", "−");
    if (value) value.textContent = shown;
    return item;
  });
  ranking.replaceChildren(...items);
}

/** @param {string} line */
function row(line) {
  return make(
    "li",
    {},
    make(
      "div",
      { class: "line" },
      make("span", { class: "sentence" }, line),
      make("span", { class: "value" }),
    ),
    make("div", { class: "track" }, make("div", { class: "fill" })),
  );
}

// ------------------------------------------------------------------ events

/** @type {ReturnType<typeof setTimeout> | undefined} */
let timer;
for (const field of [query, sentences]) {
  field.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(update, PAUSE_MS);
  });
}

for (const chip of document.querySelectorAll("#examples button")) {
  chip.addEventListener("click", () => {
    query.value = chip.textContent ?? "";
    update();
  });
}

function giveUp() {
  failed = true;
  rank(queryText());
}

rank(queryText());
loadTokenizer()
  .then((loaded) => {
    tokenizer = loaded;
    update();
  })
  .catch((error) => {
    showError(error);
    giveUp();
  });
runner.start().then(() => runner.session ?? giveUp());
