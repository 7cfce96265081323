// The runtime's entry point: everything that a page needs to run a bundle.
//
//   import { InferenceSession, Tensor } from "./pywebgpu.js";
//   const session = await InferenceSession.create("models/digits/");
//   const { probabilities } = await session.run({ image: new Tensor("float32", pixels, [1, 64]) });

export { clearCache, prefetch } from "./bundle.js";
export { BundleError, DeviceError, InputError, PywebgpuError } from "./errors.js";
export { GpuTensor } from "./gpu-tensor.js";
export { clearTuning, importRecords } from "./kept.js";
export { InferenceSession } from "./session.js";
export { Tensor } from "./tensor.js";

// All that the modules above import, named here so that the browser asks for everything at once
// instead of finding out file by file.
import "./dims.js";
import "./features.js";
import "./gpu-frame.js";
import "./gpu-memory.js";
import "./gpu-profile.js";
import "./gpu-queue.js";
import "./schema.js";
import "./shapes.js";
import "./wasm-ways.js";
import "./wasm.js";
import "./webgpu.js";
