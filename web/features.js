// What this browser's WebAssembly can do. Each probe is the smallest module that uses the feature;
// a browser without it refuses to validate the bytes. The text form stands above each.

const HEADER = [0, 0x61, 0x73, 0x6d, 1, 0, 0, 0];

/** @param {number[]} sections */
const valid = (...sections) => WebAssembly.validate(new Uint8Array([...HEADER, ...sections]));

// (module (func (result v128) (i8x16.splat (i32.const 0))))
export const simd = () =>
  valid(1, 5, 1, 0x60, 0, 1, 0x7b, 3, 2, 1, 0, 10, 8, 1, 6, 0, 0x41, 0, 0xfd, 15, 0x0b);

// (module (func (result v128)
//   (f32x4.relaxed_madd (i8x16.splat (i32.const 0)) (i8x16.splat (i32.const 0))
//                       (i8x16.splat (i32.const 0)))))
export const relaxedSimd = () =>
  valid(
    ...[1, 5, 1, 0x60, 0, 1, 0x7b, 3, 2, 1, 0, 10, 19, 1, 17, 0],
    ...[0x41, 0, 0xfd, 15, 0x41, 0, 0xfd, 15, 0x41, 0, 0xfd, 15, 0xfd, 0x85, 2, 0x0b],
  );

// (module (memory 1 1 shared) (func (drop (i32.atomic.load (i32.const 0)))))
export const atomics = () =>
  valid(
    ...[1, 4, 1, 0x60, 0, 0, 3, 2, 1, 0, 5, 4, 1, 3, 1, 1],
    ...[10, 11, 1, 9, 0, 0x41, 0, 0xfe, 16, 2, 0, 0x1a, 0x0b],
  );

/**
 * Why threads cannot be had here, or null when they can.
 * @returns {string | null}
 */
export function threadsMissing() {
  if (!globalThis.crossOriginIsolated) {
    return (
      "the page is not cross-origin isolated. Serve it with Cross-Origin-Opener-Policy: " +
      "same-origin and Cross-Origin-Embedder-Policy: require-corp"
    );
  }
  return atomics() ? null : "this browser's WebAssembly has no threads. Update the browser";
}
