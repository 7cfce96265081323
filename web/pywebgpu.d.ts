// Types of pywebgpu.js, written by hand; tests/web/test_types.py holds them against the code.

/** ONNX's names of element types. Data of types that JavaScript lacks have an array element each:
 * bfloat16 and the floats of 8 and 4 bits are Float32Array, int4 and int2 Int8Array, uint4 and uint2
 * Uint8Array. Integers must be in the type's range; floats are computed with as they are given. */
export type DataType =
  | "float32"
  | "float16"
  | "float64"
  | "bfloat16"
  | "int64"
  | "int32"
  | "int16"
  | "int8"
  | "uint64"
  | "uint32"
  | "uint16"
  | "uint8"
  | "int4"
  | "uint4"
  | "int2"
  | "uint2"
  | "float8e4m3fn"
  | "float8e4m3fnuz"
  | "float8e5m2"
  | "float8e5m2fnuz"
  | "float4e2m1"
  | "bool";

export type TypedArray =
  | Float32Array
  | Float64Array
  | Int8Array
  | Uint8Array
  | Uint8ClampedArray
  | Int16Array
  | Uint16Array
  | Int32Array
  | Uint32Array
  | BigInt64Array
  | BigUint64Array;

/** An n-dimensional array: `data` in row-major order, `dims` its shape. */
export class Tensor {
  /**
   * @param type ONNX's name of the element type
   * @param data a typed array is kept, not copied. int64 also takes an Int32Array; float16 is a
   *   Float16Array or the bits in a Uint16Array; bool is a Uint8Array
   * @param dims by default one dimension, as long as the data
   */
  constructor(
    type: DataType,
    data: TypedArray | ArrayLike<number | bigint | boolean>,
    dims?: readonly number[],
  );
  readonly type: DataType;
  /** A typed array that fits `type`: Float32Array for float32, BigInt64Array for int64, ... */
  readonly data: any;
  readonly dims: readonly number[];
  /** Number of elements. */
  readonly size: number;
  /**
   * Leave the memory to later outputs; `data` is empty afterwards. Worth calling on large outputs
   * that are no longer needed: fresh memory can take longer than the copy into it.
   */
  dispose(): void;
}

/** How elements lie in a GPU buffer. */
export type Storage = "f32" | "i32" | "f16";

/**
 * A tensor on the GPU. `session.upload` makes inputs, `session.run(feeds, { outputs: "gpu" })` gives
 * outputs; either can be fed to any session on the same device. Nothing is copied.
 */
export class GpuTensor {
  /**
   * A tensor in a buffer of the caller's.
   *
   * @param device the session's (`session.device`)
   * @param buffer usage STORAGE | COPY_SRC, its size a multiple of 16 bytes
   * @param storage how elements lie in it: by default "f32" for floats, "i32" for integers and bool
   *   (0 or 1), 4 bytes each. Bundles exported with f16 hold floats as "f16"
   */
  constructor(
    device: GPUDevice,
    buffer: GPUBuffer,
    type: DataType,
    dims: readonly number[],
    storage?: Storage,
  );
  readonly device: GPUDevice;
  /** Where it lies. Asking for it submits the runs that compute it: ask where work of your own
   * needs it, and not before. */
  readonly buffer: GPUBuffer;
  readonly type: DataType;
  readonly dims: readonly number[];
  readonly storage: Storage;
  /** Number of elements. */
  readonly size: number;
  /** The elements, as `Tensor.data` has them, once the runs that compute them are done. */
  data(): Promise<any>;
  /** Free the memory. Runs that were started before are not affected. */
  dispose(): void;
}

export interface Profile {
  /** A run's steps, each alone on the device. */
  steps: { label: string; ms: number }[];
  /** All of them in a row on the device. */
  deviceMs: number;
  /** Encoding and submitting a run in JavaScript. */
  hostMs: number;
  /** Kernel launches of a run. */
  dispatches: number;
}

export type ExecutionProvider = "webgpu" | "wasm";

export interface Progress {
  /** The file that has just grown. */
  file: string;
  /** Bytes that have arrived, of all files that are needed. */
  loaded: number;
  total: number;
  fileLoaded: number;
  fileTotal: number;
}

export interface SessionOptions {
  /** Tried in this order; by default WebGPU, then wasm. `info` says why one was passed over. */
  executionProviders?: ExecutionProvider[];
  onProgress?: (progress: Progress) => void;
  /** Gives up the download; `create` rejects with the signal's reason. */
  signal?: AbortSignal;
  /** A GPUDevice to use instead of asking for one; it is not destroyed on release. */
  device?: GPUDevice;
  /** For wasm on a cross-origin isolated page; by default one per processor, at most 8. */
  threads?: number;
  /** Run on zeros while weights arrive, so that the first run is as quick as later ones. */
  warmup?: boolean;
  /** Start with what tuning found at an earlier visit (default true). */
  tuned?: boolean;
  /** What `tune` uses unless it is given others: see `TuneOptions.records`. */
  records?: TuningRecords | string | URL;
}

export interface PortMetadata {
  name: string;
  type: DataType;
  /** A number, or the name (or expression) of a size that is known when the model runs. */
  shape: (number | string)[];
}

export interface SessionInfo {
  provider: string;
  /** What it runs on, for people. */
  device: string;
  /** Workers of the wasm provider; 0 on WebGPU. */
  threads: number;
  /** The wasm module in use ("relaxed-threads", "simd", ...), or "wgsl". */
  variant: string;
  /** Kernels that tuning found are in use. */
  tuned: boolean;
  /** What could not be used here, and why. */
  unavailable: { feature: string; reason: string }[];
}

export class InferenceSession {
  private constructor();
  /**
   * Download a bundle and make it ready on the first provider that works here.
   *
   * Rejects with BundleError (a file is missing, damaged or of another version), DeviceError (no
   * provider works), InputError (wrong options), or the signal's reason.
   *
   * @param location the bundle's folder, relative to the page; or, where the page holds a bundle
   *   itself, its files by name (what `export` wrote)
   */
  static create(
    location: string | URL | Map<string, Blob>,
    options?: SessionOptions,
  ): Promise<InferenceSession>;
  /**
   * The outputs by name. After a GPU device was lost, the session opens another one and repeats
   * the run, once, unless an input lay on that device. Rejects with InputError or DeviceError;
   * after a DeviceError of the wasm provider the session is of no more use.
   *
   * With `outputs: "gpu"` (WebGPU only) the outputs stay there, and the promise resolves as soon as
   * the work is encoded. Small runs are submitted together, at the latest when a tensor's `buffer` or
   * `data()` is asked for or the page's task ends.
   */
  run<Where extends "js" | "gpu" = "js">(
    feeds: Record<string, Tensor | GpuTensor>,
    options?: { signal?: AbortSignal; outputs?: Where },
  ): Promise<Record<string, Where extends "gpu" ? GpuTensor : Tensor>>;
  /** Feeds as tensors on the GPU, to be fed again and again. WebGPU only. */
  upload<Feeds extends Record<string, Tensor>>(
    feeds: Feeds,
  ): { [name in keyof Feeds]: GpuTensor };
  /** Where a run's time goes on the GPU, by timestamps. WebGPU only. */
  profile(
    feeds: Record<string, Tensor | GpuTensor>,
    options?: { repeats?: number },
  ): Promise<Profile>;
  /**
   * Small kernels of each family that the model uses, against known answers: what this GPU's driver
   * computes wrongly. A session does this by itself after its first run, once per device; where
   * something is wrong, the next run goes to other shaders or to wasm, or rejects.
   */
  selfTest(): Promise<{ family: string; problem: string }[]>;
  /**
   * Find quicker kernels for this device while the page goes on. Python in a worker generates
   * candidates; each is checked, and measured while no run is going on; winners are taken into use
   * between two runs and kept for the next visit. Needs the site's `py/` folder.
   */
  tune(options?: TuneOptions): Promise<Tuning>;
  /** What tuning has found out in this browser. */
  records(): Promise<TuningRecords>;
  /** Free workers, memory and the GPU device; later runs reject. */
  release(): void;
  readonly inputNames: string[];
  readonly outputNames: string[];
  readonly inputMetadata: PortMetadata[];
  readonly outputMetadata: PortMetadata[];
  readonly provider: string;
  /** The GPU device in use, to share or to watch; null on wasm. */
  readonly device: GPUDevice | null;
  readonly info: SessionInfo;
}

export interface TuneOptions {
  /** Seconds of tuning, without pauses; 30 by default. */
  budget?: number;
  /** It ends when less than this part of a run's time is to be expected; 0.02 by default. */
  enough?: number;
  onProgress?: (progress: TuneProgress) => void;
  /** Cancels the tuning. */
  signal?: AbortSignal;
  /**
   * What won elsewhere: the nearest devices' winners are measured first. Exported records, or a
   * records service (`pywebgpu records serve`) to ask for them, which a strict policy has to name
   * in `connect-src`. By default those that the session was created with.
   */
  records?: TuningRecords | string | URL;
  /** Tell the service what was measured here; false by default. */
  contribute?: boolean;
  /** A PythonRuntime to use; by default one is started, and ended after. */
  python?: {
    call(module: string, name: string, ...args: any[]): Promise<any>;
    terminate?: () => void;
  };
}

export interface TuneProgress {
  stage: "python" | "profile" | "search" | "swap" | "done";
  /** The kernel in hand, for people. */
  label: string;
  done: number;
  total: number;
  /** Of tuning so far. */
  seconds: number;
}

/** One kernel of the model; times are of one call, in milliseconds. */
export interface KernelRow {
  kernel: string;
  label: string;
  calls: number;
  /** Of a run by default, 0 to 1. */
  share: number;
  default_ms: number;
  best_ms: number;
  /** Measured or refused so far. */
  candidates: number;
  failed: number;
  knobs: Record<string, any>;
  default_knobs: Record<string, any>;
  /** default_ms / best_ms - 1 */
  gain: number;
  searched: boolean;
  /** Of one call: operations of a product, and bytes that are read and written. */
  flops: number | null;
  bytes: number;
}

export interface TuneReport {
  device: string;
  /** What the device can do: on wasm measured (`gflops`, `simd_registers`, cache sizes). */
  caps: Record<string, any> | null;
  seconds: number;
  candidates: number;
  /** Why it ended. */
  stopped: string;
  /** All kernels of a run, one after the other on one thread. */
  defaultMs: number;
  bestMs: number;
  rows: KernelRow[];
  swaps: Swap[];
}

/** Winners were taken into use: when, how many kernels, what the swap took in milliseconds. */
export interface Swap {
  seconds: number;
  kernels: number;
  ms: number;
}

/** A tuning under way. */
export interface Tuning {
  readonly state: "loading" | "running" | "paused" | "done" | "cancelled" | "failed";
  /** The report, also of a tuning that was cancelled; rejects when it could not go on. */
  readonly finished: Promise<TuneReport>;
  /** Every kernel, what takes most first; empty until the defaults are measured. */
  readonly rows: KernelRow[];
  readonly swaps: Swap[];
  /** See TuneReport; null until it is known. */
  readonly caps: Record<string, any> | null;
  pause(): void;
  resume(): void;
  /** End it now; what has been found stays in use and is kept. */
  cancel(): void;
}

/** The form of records.schema.json: the same as of `pywebgpu tune`'s file. */
export interface TuningRecords {
  format_version: number;
  records: {
    kernel: string;
    target: string;
    device: string;
    generator_version: string;
    candidates: { knobs: Record<string, any>; ms: number | null; error: string | null }[];
    best: Record<string, any>;
  }[];
}

/** Add records from elsewhere; tuning measures their winners first. */
export function importRecords(records: TuningRecords): Promise<void>;

/** Forget tuned code and records of this origin. */
export function clearTuning(): Promise<void>;

/** Base of all errors that the runtime raises on purpose. */
export class PywebgpuError extends Error {
  constructor(
    what: string,
    details?: { where?: string; got?: unknown; expected?: unknown; remedy?: string; cause?: unknown },
  );
  /** The problem, as a short clause. */
  readonly what: string;
  /** The file, input or setting it is about. */
  readonly where: string;
  readonly got: string | null;
  readonly expected: string | null;
  /** What the reader can do. */
  readonly remedy: string;
  toJSON(): {
    type: string;
    what: string;
    where: string;
    got: string | null;
    expected: string | null;
    remedy: string;
  };
}

/** A bundle is missing a file, damaged, or of a version that this runtime does not read. */
export class BundleError extends PywebgpuError {}

/** A value or an option given by the caller is wrong: name, shape, type. */
export class InputError extends PywebgpuError {}

/** A device or a browser feature is missing, too small, or was lost. */
export class DeviceError extends PywebgpuError {}

/**
 * Download every file of a bundle into Cache Storage, for a later session to start without a
 * network (the page and manifest.json have to be kept by other means, such as a service worker).
 * Rejects with BundleError, with the signal's reason, or when the browser's storage is full.
 *
 * @param url the bundle's folder, relative to the page
 */
export function prefetch(
  url: string | URL,
  options?: { onProgress?: (progress: Progress) => void; signal?: AbortSignal },
): Promise<void>;

/** Forget every file that bundles of this origin have left in Cache Storage. */
export function clearCache(): Promise<boolean>;
