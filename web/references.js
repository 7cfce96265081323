// What no schema can say of a manifest: that the numbers and names in it refer to something.
// pywebgpu/references.py says the same in Python; tests/web/test_bundle_errors.py asks both.

import { symbolsOf } from "./dims.js";
import { walk } from "./program.js";

/** @typedef {import("./bundle.js").Manifest} Manifest */
/** @typedef {import("./bundle.js").Step} Step */
/** @typedef {import("./dims.js").Dim} Dim */

/**
 * The first number or name that refers to nothing, as "path: what"; null where there is none.
 * @param {Manifest} manifest
 * @returns {string | null}
 */
export function dangling(manifest) {
  const { inputs, outputs, buffers, slots, weights, steps, wasm, webgpu, files } = manifest;
  const program = walk(manifest.program);
  const sizes = new Set(manifest.symbols);
  for (const item of program) if ("read" in item) sizes.add(item.read.symbol);

  /** @param {string} path @param {number} number @param {{length: number}} list */
  const beyond = (path, number, { length }) =>
    number < length ? null : `${path}: ${number}, but there are only ${length}`;
  /** @param {string} path @param {string} [name] */
  const unlisted = (path, name) =>
    name === undefined || Object.hasOwn(files, name) ? null : `${path}: "${name}" is not in files`;
  /** @param {string} path @param {Dim[]} dims @param {Set<string>} [names] */
  const unknown = (path, dims, names = sizes) => {
    const name = dims.flatMap(symbolsOf).find((symbol) => !names.has(symbol));
    return name === undefined ? null : `${path}: no size is called "${name}"`;
  };
  /** @param {string} path @param {Step[]} list */
  const inSteps = (path, list) =>
    list.flatMap(({ operands, output, kept = output, args }, i) => [
      ...[...operands, output, kept].map((number) => beyond(`${path}/${i}`, number, buffers)),
      unknown(`${path}/${i}/args`, args),
    ]);

  /** @param {number} number */
  const slotOf = (number) => {
    const buffer = buffers[number];
    return buffer && "slot" in buffer ? buffer.slot : -1;
  };
  /** @param {Step} step */
  const inPlace = ({ operands, output }) =>
    [-1, ...operands.map(slotOf)].includes(slotOf(output));

  const ports = [["/inputs", inputs], ["/outputs", outputs]];
  const found = [
    ...ports.flatMap(([path, list]) =>
      /** @type {import("./bundle.js").Port[]} */ (list).flatMap((port, i) => [
        beyond(`${path}/${i}/buffer`, port.buffer, buffers),
        unknown(`${path}/${i}/shape`, port.shape),
      ]),
    ),
    ...buffers.flatMap((b, i) =>
      "slot" in b
        ? [beyond(`/buffers/${i}/slot`, b.slot, slots), unknown(`/buffers/${i}/bytes`, [b.bytes])]
        : [beyond(`/buffers/${i}/weight`, b.weight + b.bytes - 1, { length: weights.bytes })],
    ),
    unknown("/slots", slots),
    ...manifest.checks.map((c, i) => unknown(`/checks/${i}`, [c.left, c.right])),
    ...weights.shards.map((name, i) => unlisted(`/weights/shards/${i}`, name)),
    ...wasm.params.map((p, i) => {
      if ("slot" in p) return beyond(`/wasm/params/${i}`, p.slot, slots);
      return "dim" in p ? unknown(`/wasm/params/${i}`, [p.dim]) : null;
    }),
    unknown("/wasm/scratch_per_thread", [wasm.scratch_per_thread]),
    ...wasm.variants.map(({ file }, i) => unlisted(`/wasm/variants/${i}/file`, file)),
    ...inSteps("/steps", steps),
    ...inSteps("/webgpu/steps", webgpu.steps),
    ...webgpu.variants.flatMap(({ file, tests, kernels }, v) => [
      unlisted(`/webgpu/variants/${v}/file`, file),
      unlisted(`/webgpu/variants/${v}/tests`, tests),
      ...kernels.flatMap(({ passes, scratch }, k) =>
        passes.flatMap(({ bindings }, p) =>
          bindings.map(([role, number], b) => {
            const path = `/webgpu/variants/${v}/kernels/${k}/passes/${p}/bindings/${b}`;
            return role === "scratch" ? beyond(path, number, scratch) : null;
          }),
        ),
      ),
      ...webgpu.steps.flatMap(({ kernel, operands, args }, i) => {
        const path = `/webgpu/steps/${i}`;
        const { passes, scratch } = kernels[kernel] ?? { passes: [], scratch: [] };
        const names = new Set(args.map((_, n) => `a${n}`)); // what a kernel calls its arguments
        return [
          inPlace(webgpu.steps[i]) && `${path}: it writes where it reads, or into weights`,
          beyond(`${path}/kernel`, kernel, kernels),
          unknown(`${path}/args`, [...scratch, ...passes.flatMap(({ grid }) => grid)], names),
          ...passes.flatMap(({ bindings }) =>
            bindings.map(([role, number]) =>
              role === "operand" ? beyond(`${path}/operands`, number, operands) : null,
            ),
          ),
        ];
      }),
    ]),
    ...program.flatMap((item) => {
      const path = "/program";
      if ("steps" in item) return [beyond(path, Math.max(...item.steps) - 1, steps)];
      if ("read" in item) {
        return [beyond(path, item.read.buffer, buffers), unknown(path, [item.read.most])];
      }
      if ("branch" in item) return [beyond(path, item.branch.condition, buffers)];
      const { going, trips } = item.loop;
      return [beyond(path, going ?? -1, buffers), unknown(path, [trips])];
    }),
  ];
  return found.find((text) => text) || null;
}
