// What tuning found, kept in IndexedDB: the tuned code of a model for its next visit, and records
// of what was measured. Nothing is written before something has been tuned.

import { InputError } from "./errors.js";

/** @typedef {import("./dims.js").Dim} Dim */
/** @typedef {import("./bundle.js").GpuKernel} GpuKernel */
/** @typedef {import("./bundle.js").Manifest} Manifest */
/**
 * Tuned code of a model: a module, or some kernels in other forms.
 * @typedef {object} Tuned
 * @property {Uint8Array<ArrayBuffer>} [wasm]
 * @property {Dim} [scratchPerThread]
 * @property {string[]} [codes]
 * @property {Record<string, GpuKernel>} [kernels] by number; their passes name `codes`
 */
/** @typedef {(file: string, device: string) => Promise<Tuned | null>} FindTuned */
/**
 * @typedef {object} TuningRecord
 * @property {string} kernel
 * @property {string} target
 * @property {string} device
 * @property {string} generator_version
 * @property {{knobs: Record<string, any>, ms: number | null, error: string | null}[]} candidates
 * @property {Record<string, any>} best
 */
/** @typedef {{format_version: number, records: TuningRecord[]}} Records in the form of records.schema.json */

const DATABASE = "pywebgpu";
const VERSION = 1;
export const RECORDS_FORMAT = 1;

/**
 * Where tuned code is found again: the file that it replaces (its hash stands for model and plan),
 * what it was tuned on, and the generator. Another version of any of them finds nothing.
 * @param {Manifest} manifest
 * @param {string} file
 * @param {string} device
 */
export function tunedKey({ files, generator_version }, file, device) {
  const place = `${globalThis.navigator?.hardwareConcurrency ?? 0} ${device}`;
  return [generator_version, file, files[file]?.sha256, place].join("|");
}

export class Kept {
  /** @type {Promise<IDBDatabase | null>} */
  #database;

  /** @param {boolean} wanted look for tuned code at all */
  constructor(wanted = true) {
    this.wanted = wanted;
    this.#database = wanted ? this.#open(false) : Promise.resolve(null);
  }

  /** @param {boolean} create */
  async #open(create) {
    const database = await open(create);
    if (database) {
      // Whoever wants to delete or change the database must not have to wait for this page.
      database.onversionchange = () => {
        database.close();
        this.#database = Promise.resolve(null);
      };
    }
    return database;
  }

  /**
   * For a host that loads: what was tuned for a file of this bundle on a device.
   * @param {Manifest} manifest
   * @returns {FindTuned}
   */
  finder(manifest) {
    return async (file, device) => {
      const database = this.wanted ? await this.#database : null;
      if (!database) return null;
      try {
        const store = database.transaction("tuned").objectStore("tuned");
        return (await result(store.get(tunedKey(manifest, file, device)))) ?? null;
      } catch {
        return null; // an untuned start is no failure
      }
    };
  }

  /**
   * @param {string} key
   * @param {Tuned} tuned
   */
  async keep(key, tuned) {
    const store = await this.#store("tuned", "readwrite");
    if (store) await result(store.put(tuned, key));
  }

  /** Every record, in the form of records.schema.json. */
  async records() {
    const store = await this.#store("records", "readonly");
    const records = store ? await result(store.getAll()) : [];
    return { format_version: RECORDS_FORMAT, records };
  }

  /**
   * Later records take the place of earlier ones of the same kernel, target, device and version.
   * @param {TuningRecord[]} records
   */
  async add(records) {
    const store = await this.#store("records", "readwrite");
    if (!store) return;
    await Promise.all(
      records.map((r) => result(store.put(r, [r.target, r.device, r.kernel, r.generator_version]))),
    );
  }

  /** @param {"tuned" | "records"} name @param {IDBTransactionMode} mode */
  async #store(name, mode) {
    // `finder` looks where something is; writing makes the database.
    this.#database = this.#database.then((database) => database ?? this.#open(mode === "readwrite"));
    const database = await this.#database;
    return database?.transaction(name, mode).objectStore(name) ?? null;
  }
}

/**
 * Add records from elsewhere: tuning measures their winners first.
 * @param {Records} data
 */
export async function importRecords(data) {
  checkRecords(data, "importRecords");
  await new Kept(false).add(data.records);
}

/**
 * Refuse what is not records.
 * @param {Records} data
 * @param {string} where
 */
export function checkRecords(data, where) {
  const keys = /** @type {const} */ (["kernel", "target", "device", "generator_version"]);
  const fits =
    data?.format_version === RECORDS_FORMAT &&
    Array.isArray(data.records) &&
    data.records.every((r) => keys.every((key) => typeof r?.[key] === "string") && "best" in r);
  if (!fits) {
    throw new InputError("not tuning records", {
      where,
      got: `format_version ${JSON.stringify(data?.format_version)}`,
      expected: `what session.records() or \`pywebgpu tune\` gave, format_version ${RECORDS_FORMAT}`,
    });
  }
}

/** Forget tuned code and records of this origin. */
export async function clearTuning() {
  if ("indexedDB" in globalThis) {
    await new Promise((resolve) => {
      const request = indexedDB.deleteDatabase(DATABASE);
      request.onsuccess = request.onerror = () => resolve(null);
    });
  }
}

/**
 * The database; null where there is none, or where the browser gives none (private windows).
 * @param {boolean} create
 * @returns {Promise<IDBDatabase | null>}
 */
function open(create) {
  return new Promise((resolve) => {
    /** @type {IDBOpenDBRequest} */
    let request;
    try {
      request = indexedDB.open(DATABASE, VERSION);
    } catch {
      return resolve(null);
    }
    request.onupgradeneeded = () => {
      if (!create) return request.transaction?.abort();
      for (const name of ["tuned", "records"]) request.result.createObjectStore(name);
    };
    request.onsuccess = () => resolve(request.result);
    request.onblocked = () => resolve(null);
    request.onerror = (event) => {
      event.preventDefault();
      resolve(null);
    };
  });
}

/**
 * @template T
 * @param {IDBRequest<T>} request
 * @returns {Promise<T>}
 */
const result = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
