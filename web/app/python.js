// The Python page: a program and a console, run by Python in a worker.

import { PythonRuntime } from "../py/client.js";
import { Console } from "./console.js";
import { element, milliseconds, pageData, showError } from "./dom.js";

const code = element("code", HTMLTextAreaElement);
const status = element("status", HTMLElement);
const badge = element("badge", HTMLElement);
const runButton = element("run", HTMLButtonElement);
const stopButton = element("stop", HTMLButtonElement);

/** @type {Promise<PythonRuntime> | null} */
let python = null;
/** Has the console what it promises? @type {Promise<void> | null} */
let prepared = null;
/** Ends it. */
let ending = new AbortController();

const terminal = new Console(async () => {
  const runtime = await load();
  await (prepared ??= prepare(runtime));
  return runtime;
});

/** @param {string} state @param {string} text */
function show(state, text) {
  document.documentElement.dataset.state = state;
  badge.textContent = text;
}

function load() {
  return (python ??= start());
}

function start() {
  show("loading", "Loading Python…");
  stopButton.disabled = false;
  ending = new AbortController();
  const loading = PythonRuntime.create({
    signal: ending.signal,
    onOutput: (text, stream) => terminal.print(text, stream === "stderr" ? "error" : "plain"),
  });
  loading.then(
    ({ version }) => {
      if (python !== loading) return; // stopped meanwhile
      show("ready", `Pyodide ${version}`);
      element("loads", HTMLElement).hidden = true;
    },
    (error) => {
      if (python !== loading) return;
      showError(error);
      python = null;
      stopButton.disabled = true;
      show("failed", "Not loaded");
    },
  );
  return loading;
}

/** @param {PythonRuntime} runtime */
async function prepare(runtime) {
  terminal.print(await runtime.call("pywebgpu.page_console", "prepare", pageData("first")), "echo");
}

async function run() {
  runButton.disabled = true;
  terminal.clear();
  showError(null);
  document.documentElement.dataset.run = "busy";
  try {
    status.textContent = "Loading…";
    const runtime = await load();
    status.textContent = "Running…";
    const begin = performance.now();
    const value = await runtime.run(code.value);
    if (value !== undefined && value !== null) terminal.print(String(value));
    status.textContent = milliseconds(performance.now() - begin);
    document.documentElement.dataset.run = "done";
  } catch (error) {
    status.textContent = "";
    const { traceback } = /** @type {{traceback?: string}} */ (error);
    if (traceback) terminal.print(traceback, "error");
    else if (python) showError(error); // else the visitor has stopped it, or `start` has told why
    document.documentElement.dataset.run = "failed";
  } finally {
    runButton.disabled = false;
  }
}

/** Whatever Python is doing; the next statement starts it afresh. */
function stop() {
  python = prepared = null;
  ending.abort();
  stopButton.disabled = true;
  show("idle", "Stopped");
}

code.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (!runButton.disabled) run();
  }
});
runButton.addEventListener("click", run);
stopButton.addEventListener("click", stop);
