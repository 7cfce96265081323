// A device may say that it can do what its driver does wrongly: shaders that find out.

/**
 * Whether a shader that checks itself compiles, runs and writes 0 to its one u32.
 * @param {GPUDevice} device
 * @param {string} code
 */
export async function healthy(device, code) {
  return (await run(device, code).catch(() => null)) === 0;
}

/**
 * Nothing is awaited within an error scope: others use the device, too.
 * @param {GPUDevice} device
 * @param {string} code
 */
async function run(device, code) {
  device.pushErrorScope("validation");
  const module = device.createShaderModule({ code });
  device.popErrorScope().catch(() => {}); // the pipeline says so, too
  const pipeline = await device.createComputePipelineAsync({
    layout: "auto",
    compute: { module, entryPoint: "main" },
  });
  const { STORAGE, COPY_SRC, COPY_DST, MAP_READ } = GPUBufferUsage;
  const output = device.createBuffer({ size: 4, usage: STORAGE | COPY_SRC | COPY_DST });
  const staging = device.createBuffer({ size: 4, usage: MAP_READ | COPY_DST });
  device.pushErrorScope("validation");
  device.queue.writeBuffer(output, 0, new Uint32Array([0xffffffff])); // not run is not right
  const encoder = device.createCommandEncoder();
  const pass = encoder.beginComputePass();
  pass.setPipeline(pipeline);
  const layout = pipeline.getBindGroupLayout(0);
  const entries = [{ binding: 0, resource: { buffer: output } }];
  pass.setBindGroup(0, device.createBindGroup({ layout, entries }));
  pass.dispatchWorkgroups(1);
  pass.end();
  encoder.copyBufferToBuffer(output, 0, staging, 0, 4);
  device.queue.submit([encoder.finish()]);
  const refused = device.popErrorScope();
  await staging.mapAsync(GPUMapMode.READ);
  const [wrong] = new Uint32Array(staging.getMappedRange());
  output.destroy();
  staging.destroy();
  return (await refused) ? null : wrong;
}
