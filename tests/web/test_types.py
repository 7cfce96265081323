"""The hand-written declarations say what the code does."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TSC = ROOT / "node_modules" / ".bin" / "tsc"

# The left sides are declared, the right sides implemented: each must fit.
_CONFORMANCE = """
import type * as declared from "WEB/pywebgpu.js";
import * as session from "WEB/session.js";
import * as tensor from "WEB/tensor.js";
import * as gpu from "WEB/gpu-tensor.js";
import * as errors from "WEB/errors.js";
import { clearCache, prefetch } from "WEB/bundle.js";
import * as kept from "WEB/kept.js";

export const create: typeof declared.InferenceSession.create = async (url, options) =>
  session.InferenceSession.create(url, options);
export const s: Omit<declared.InferenceSession, "run"> = {} as session.InferenceSession;
export const run: declared.InferenceSession["run"] = ({} as session.InferenceSession).run;
export const t: typeof declared.Tensor = tensor.Tensor;
export const g: typeof declared.GpuTensor = gpu.GpuTensor;
export const e: typeof declared.PywebgpuError = errors.PywebgpuError;
export const b: typeof declared.BundleError = errors.BundleError;
export const imported: typeof declared.importRecords = kept.importRecords;
export const cleared: typeof declared.clearTuning = kept.clearTuning;
export const clear: typeof declared.clearCache = clearCache;
export const fetchAll: typeof declared.prefetch = prefetch;

// Callers see these types.
export async function page(device: GPUDevice) {
  const made = await create("x", { executionProviders: ["wasm"], device, threads: 2 });
  const outputs = await made.run({ x: new tensor.Tensor("float32", [1, 2], [2]) });
  const data: Float32Array = outputs["y"].data;
  const resident = await made.run(made.upload({ x: new tensor.Tensor("float32", [1]) }), {
    outputs: "gpu",
  });
  resident["y"].dispose();
  // @ts-expect-error outputs in JavaScript are no buffers on the GPU
  void outputs["y"].buffer;
  // @ts-expect-error there is no such provider
  await create("x", { executionProviders: ["cuda"] });
  return data;
}
"""


@pytest.mark.skipif(not TSC.exists(), reason="npm install has not been run")
def test_declarations_fit_the_code(tmp_path: Path) -> None:
    source = tmp_path / "conformance.ts"
    source.write_text(_CONFORMANCE.replace("WEB", str(ROOT / "web")))
    config = tmp_path / "tsconfig.json"
    options = json.loads((ROOT / "tsconfig.json").read_text())["compilerOptions"]
    options["typeRoots"] = [str(ROOT / "node_modules"), str(ROOT / "node_modules" / "@types")]
    config.write_text(json.dumps({"compilerOptions": options, "include": [str(source)]}))
    done = subprocess.run([TSC, "-p", config], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_export_is_declared() -> None:
    exported = set()
    for names in re.findall(r"export \{([^}]*)\}", (ROOT / "web" / "pywebgpu.js").read_text()):
        exported.update(name.strip() for name in names.split(","))
    text = (ROOT / "web" / "pywebgpu.d.ts").read_text()
    declared = set(re.findall(r"^export (?:class|function) (\w+)", text, re.M))
    assert declared == exported
