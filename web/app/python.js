// The Python page: a program, run by Python in a worker, and what it prints.

import { PythonRuntime } from "../py/client.js";
import { element, milliseconds, showError } from "./dom.js";

const code = element("code", HTMLTextAreaElement);
const output = element("output", HTMLElement);
const status = element("status", HTMLElement);
const badge = element("badge", HTMLElement);
const runButton = element("run", HTMLButtonElement);
const stopButton = element("stop", HTMLButtonElement);

/** @type {Promise<PythonRuntime> | null} */
let python = null;

/** @param {string} state @param {string} text */
function show(state, text) {
  document.documentElement.dataset.state = state;
  badge.textContent = text;
}

/** @param {string} text */
function print(text) {
  output.append(`${text}\n`);
  output.scrollTop = output.scrollHeight;
}

function start() {
  show("loading", "Loading Python…");
  const loading = PythonRuntime.create({ onOutput: print });
  loading.then(
    ({ version }) => show("ready", `Pyodide ${version}`),
    () => {
      python = null;
      show("failed", "Not loaded");
    },
  );
  return loading;
}

async function run() {
  runButton.disabled = true;
  stopButton.disabled = false;
  output.textContent = "";
  showError(null);
  document.documentElement.dataset.run = "busy";
  try {
    python ??= start();
    status.textContent = "Loading…";
    const runtime = await python;
    status.textContent = "Running…";
    const begin = performance.now();
    const value = await runtime.run(code.value);
    if (value !== undefined && value !== null) print(String(value));
    status.textContent = milliseconds(performance.now() - begin);
    document.documentElement.dataset.run = "done";
  } catch (error) {
    status.textContent = "";
    const { traceback } = /** @type {{traceback?: string}} */ (error);
    if (traceback) print(traceback);
    else showError(error);
    document.documentElement.dataset.run = "failed";
  } finally {
    runButton.disabled = false;
    stopButton.disabled = true;
  }
}

async function stop() {
  const running = python;
  python = null;
  (await running)?.terminate();
  show("idle", "Stopped");
}

code.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (!runButton.disabled) run();
  }
});
runButton.addEventListener("click", run);
stopButton.addEventListener("click", () => stop().catch(showError));
