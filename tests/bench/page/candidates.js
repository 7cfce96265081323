// Times every kernel of a job on the device; see tests/bench/candidates.py.

const index = Number(new URLSearchParams(location.search).get("job") ?? 0);
const { jobs, collector } = await (await fetch("../jobs.json")).json();
const { STORAGE, COPY_SRC, COPY_DST, QUERY_RESOLVE, MAP_READ } = GPUBufferUsage;
const POISON = 0x7fc0bad1;

/** @param {object} result */
const post = (result) =>
  fetch(collector, { method: "POST", body: JSON.stringify({ index, ...result }) });

async function open() {
  const adapter = await navigator.gpu?.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter) throw new Error("no adapter");
  const wanted = /^(shader-f16|subgroups|timestamp-query|chromium-experimental-subgroup-matrix)$/;
  const device = await adapter.requestDevice({
    requiredFeatures: [...adapter.features].filter((name) => wanted.test(name)),
    requiredLimits: {
      maxBufferSize: adapter.limits.maxBufferSize,
      maxStorageBufferBindingSize: adapter.limits.maxStorageBufferBindingSize,
      maxComputeWorkgroupStorageSize: adapter.limits.maxComputeWorkgroupStorageSize,
      maxComputeInvocationsPerWorkgroup: adapter.limits.maxComputeInvocationsPerWorkgroup,
      maxComputeWorkgroupSizeX: adapter.limits.maxComputeWorkgroupSizeX,
    },
  });
  return { adapter, device };
}

class Bench {
  /** @param {GPUDevice} device @param {any} job */
  constructor(device, job) {
    this.device = device;
    this.job = job;
    this.queries = device.createQuerySet({ type: "timestamp", count: 2 });
    this.resolved = device.createBuffer({ size: 16, usage: QUERY_RESOLVE | COPY_SRC });
    /** @type {GPUBuffer[]} */
    this.operands = [];
    this.output = this.buffer(job.elements * (job.half ? 2 : 4));
  }

  /** @param {number} bytes */
  buffer(bytes) {
    const size = Math.max(16, Math.ceil(bytes / 16) * 16);
    return this.device.createBuffer({ size, usage: STORAGE | COPY_SRC | COPY_DST });
  }

  /** @param {GPUBuffer} source @param {number} size */
  async read(source, size) {
    const staging = this.device.createBuffer({ size, usage: MAP_READ | COPY_DST });
    const encoder = this.device.createCommandEncoder();
    encoder.copyBufferToBuffer(source, 0, staging, 0, size);
    this.device.queue.submit([encoder.finish()]);
    await staging.mapAsync(GPUMapMode.READ);
    const copy = staging.getMappedRange().slice(0);
    staging.destroy();
    return copy;
  }

  async load() {
    for (const url of this.job.operands) {
      const data = await (await fetch(url)).arrayBuffer();
      const target = this.buffer(data.byteLength);
      this.device.queue.writeBuffer(target, 0, data);
      this.operands.push(target);
    }
    const { expected } = this.job;
    /** @type {Float32Array | null} */
    this.expected = expected && new Float32Array(await (await fetch(expected)).arrayBuffer());
  }

  /** @param {any} kernel */
  async prepare(kernel) {
    const start = performance.now();
    const scratch = kernel.scratch.map((/** @type {number} */ bytes) => this.buffer(bytes));
    const passes = [];
    for (const { code, bindings, grid } of kernel.passes) {
      const module = this.device.createShaderModule({ code });
      const { messages } = await module.getCompilationInfo();
      const bad = messages.find(({ type }) => type === "error");
      if (bad) throw new Error(`${bad.message}: ${code.split("\n")[bad.lineNum - 1].trim()}`);
      const pipeline = await this.device.createComputePipelineAsync({
        layout: "auto",
        compute: { module, entryPoint: "main" },
      });
      const entries = bindings.map((/** @type {[string, number]} */ [role, i], binding) => ({
        binding,
        resource: { buffer: role === "output" ? this.output : (role === "scratch" ? scratch : this.operands)[i] },
      }));
      const layout = pipeline.getBindGroupLayout(0);
      passes.push({ pipeline, group: this.device.createBindGroup({ layout, entries }), grid });
    }
    return { passes, compiled: performance.now() - start };
  }

  /**
   * Seconds of `repeats` runs, after as many that are not timed.
   * @param {any[]} passes @param {number} repeats
   */
  async time(passes, repeats) {
    const encoder = this.device.createCommandEncoder();
    const timestampWrites = {
      querySet: this.queries, beginningOfPassWriteIndex: 0, endOfPassWriteIndex: 1,
    };
    for (const timed of [false, true]) {
      const pass = encoder.beginComputePass(timed ? { timestampWrites } : {});
      for (let i = 0; i < repeats; i++) {
        for (const { pipeline, group, grid } of passes) {
          pass.setPipeline(pipeline);
          pass.setBindGroup(0, group);
          pass.dispatchWorkgroups(grid[0], grid[1], grid[2]);
        }
      }
      pass.end();
    }
    encoder.resolveQuerySet(this.queries, 0, 2, this.resolved, 0);
    this.device.queue.submit([encoder.finish()]);
    const [first, last] = new BigUint64Array(await this.read(this.resolved, 16));
    return Number(last - first) * 1e-9;
  }

  /** The greatest deviation of one run, over the greatest result. @param {any[]} passes */
  async check(passes) {
    const bytes = Math.ceil((this.job.elements * (this.job.half ? 2 : 4)) / 16) * 16;
    this.device.queue.writeBuffer(this.output, 0, new Uint32Array(bytes / 4).fill(POISON));
    await this.time(passes, 1);
    const raw = await this.read(this.output, bytes);
    const found = this.job.half ? new Float16Array(raw) : new Float32Array(raw);
    const got = Float32Array.from(found.subarray(0, this.job.elements));
    this.expected ??= got;
    let scale = 0;
    for (const x of this.expected) scale = Math.max(scale, Math.abs(x));
    let worst = 0;
    for (let i = 0; i < got.length; i++) {
      const off = Math.abs(got[i] - this.expected[i]);
      if (!(off <= worst)) worst = off;
    }
    return worst / scale;
  }
}

/** @param {any} job */
async function run(job) {
  const { adapter, device } = await open();
  const bench = new Bench(device, job);
  await bench.load();
  const made = await Promise.all(
    job.kernels.map((/** @type {any} */ kernel) =>
      bench.prepare(kernel).catch((error) => ({ problem: String(error).slice(0, 600) }))),
  );
  /** @type {any[]} */
  const results = [];
  for (const kernel of made) {
    if (kernel.problem) {
      results.push({ problem: kernel.problem, seconds: [], error: null });
      continue;
    }
    device.pushErrorScope("validation");
    const error = await bench.check(kernel.passes);
    const problem = (await device.popErrorScope())?.message;
    const once = problem ? 1 : (await bench.time(kernel.passes, 3)) / 3;
    results.push({ problem, error, seconds: [], compiled: kernel.compiled, once });
  }
  // A GPU that has waited for a compiler takes a while to raise its clock again.
  const awake = performance.now() + 300;
  for (let i = 0; performance.now() < awake; i = (i + 1) % made.length) {
    if (!results[i].problem) await bench.time(made[i].passes, 20);
  }
  for (let round = 0; round < job.rounds; round++) {
    for (const [i, result] of results.entries()) {
      if (result.problem) continue;
      const repeats = Math.max(1, Math.min(1000, Math.floor(job.busy / Math.max(result.once, 1e-6))));
      result.once = (await bench.time(made[i].passes, repeats)) / repeats;
      result.seconds.push(result.once);
    }
  }
  const { vendor, architecture, subgroupMinSize, subgroupMaxSize } = adapter.info;
  device.destroy();
  return {
    device: `${vendor} ${architecture} subgroups ${subgroupMinSize}-${subgroupMaxSize}`,
    kernels: results,
  };
}

if (index < jobs.length) {
  await post(await run(jobs[index]).catch((error) => ({ failed: String(error) })));
  location.search = `?job=${index + 1}`;
}
