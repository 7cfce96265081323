// The page's side of a records service (`pywebgpu records serve`). What it does not answer, or not in
// time, is done without.

import { RECORDS_FORMAT } from "../kept.js";

/** @typedef {import("../kept.js").TuningRecord} TuningRecord */

const PATIENCE_MS = 10_000;
const KERNELS = 100; // of one request: their names are in its address
const RECORDS = 200; // of one contribution; the service takes 500, and 512 KiB

export class RecordsService {
  /** @param {string | URL} url */
  constructor(url) {
    this.url = new URL(url, globalThis.document?.baseURI ?? globalThis.location.href);
    if (!this.url.pathname.endsWith("/")) this.url.pathname += "/";
  }

  /**
   * What won for these kernels, on whatever device, in the form of records.schema.json.
   * @param {string} target
   * @param {string[]} kernels
   */
  async winners(target, kernels) {
    const records = [];
    for (const some of batches(kernels, KERNELS)) {
      const query = new URLSearchParams([["target", target], ...some.map((k) => ["kernel", k])]);
      const found = await this.#ask(`v1/winners?${query}`, {});
      if (!found) break;
      records.push(...found.records);
    }
    return JSON.stringify({ format_version: RECORDS_FORMAT, records });
  }

  /** @param {TuningRecord[]} records */
  async contribute(records) {
    for (const some of batches(records, RECORDS)) {
      const body = JSON.stringify({ format_version: RECORDS_FORMAT, records: some });
      const headers = { "Content-Type": "application/json" };
      await this.#ask("v1/records", { method: "POST", headers, body });
    }
  }

  /**
   * @param {string} path
   * @param {RequestInit} request
   * @returns {Promise<any>} null when there is no answer
   */
  async #ask(path, request) {
    const url = new URL(path, this.url);
    const signal = AbortSignal.timeout(PATIENCE_MS);
    /** @type {RequestInit} */
    const quiet = { credentials: "omit", referrerPolicy: "no-referrer", cache: "no-cache" };
    try {
      const response = await fetch(url, { ...request, ...quiet, signal });
      if (!response.ok) throw new Error(`HTTP status ${response.status}`);
      return await response.json();
    } catch (error) {
      console.warn(`pywebgpu: ${url.origin} gives no records:`, error);
      return null;
    }
  }
}

/**
 * @template T
 * @param {T[]} items
 * @param {number} size
 */
function* batches(items, size) {
  for (let at = 0; at < items.length; at += size) yield items.slice(at, at + size);
}
