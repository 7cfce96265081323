// The errors that a page sees: the same four classes of fact, and the same text, as in Python
// (pywebgpu/errors.py). Callers tell cases apart by class, never by the text of a message.

/**
 * @typedef {object} Details
 * @property {string} [where] the file, input or setting it is about
 * @property {unknown} [got] the value found
 * @property {unknown} [expected] the values that would do
 * @property {string} [remedy] one sentence on what the reader can do
 * @property {unknown} [cause] the error underneath, if any
 */

/** Base of all errors that the runtime raises on purpose. */
export class PywebgpuError extends Error {
  /**
   * @param {string} what the problem, as a short clause
   * @param {Details} [details]
   */
  constructor(what, { where = "", got, expected, remedy = "", cause } = {}) {
    const facts = [];
    if (got !== undefined) facts.push(`got ${got}`);
    if (expected !== undefined) facts.push(`expected ${expected}`);
    super(
      (where ? `${where}: ` : "") +
        what +
        (facts.length ? ` (${facts.join(", ")})` : "") +
        (remedy ? `. ${remedy}` : ""),
      cause === undefined ? undefined : { cause },
    );
    this.name = new.target.name;
    this.what = what;
    this.where = where;
    this.got = got === undefined ? null : String(got);
    this.expected = expected === undefined ? null : String(expected);
    this.remedy = remedy;
  }

  /** The same facts as a plain object, for logs and for messages between threads. */
  toJSON() {
    const { name: type, what, where, got, expected, remedy } = this;
    return { type, what, where, got, expected, remedy };
  }
}

/** A bundle is missing a file, damaged, or of a version that this runtime does not read. */
export class BundleError extends PywebgpuError {}

/** A value or an option given by the caller is wrong: name, shape, type. */
export class InputError extends PywebgpuError {}

/** A device or a browser feature is missing, too small, or was lost. */
export class DeviceError extends PywebgpuError {}
