// The files of a zip, by the browser's own inflate; their contents are checked by whoever uses them.
// Sections of PKWARE's APPNOTE are named where their records are read.

const END = { signature: 0x06054b50, bytes: 22 }; // 4.3.16, end of central directory
const ENTRY = { signature: 0x02014b50, bytes: 46 }; // 4.3.12, central directory header
const LOCAL = { signature: 0x04034b50, bytes: 30 }; // 4.3.7, local file header
const LONGEST_COMMENT = 0xffff;
const ELSEWHERE = 0xffffffff; // 4.5.3: in a zip64 record
const [STORED, DEFLATED] = [0, 8]; // 4.4.5
const ENCRYPTED = 1; // 4.4.4

/** @param {Blob} blob @param {number} start @param {number} [end] */
const view = async (blob, start, end) => new DataView(await blob.slice(start, end).arrayBuffer());

/**
 * @param {Blob} zip
 * @returns {Promise<Map<string, Blob>>} by their paths; folders by themselves are left out
 */
export async function unzip(zip) {
  const tail = await view(zip, Math.max(0, zip.size - END.bytes - LONGEST_COMMENT));
  let at = tail.byteLength - END.bytes;
  while (at >= 0 && tail.getUint32(at, true) !== END.signature) at--;
  if (at < 0) throw new Error("it is no zip, or its end is missing");
  const [bytes, start] = [tail.getUint32(at + 12, true), tail.getUint32(at + 16, true)];
  if (start === ELSEWHERE) throw new Error("it is larger than 4 GB");

  const directory = await view(zip, start, start + bytes);
  /** @type {Map<string, Blob>} */
  const files = new Map();
  for (let entry = 0; entry + ENTRY.bytes <= directory.byteLength; ) {
    const short = (/** @type {number} */ offset) => directory.getUint16(entry + offset, true);
    const long = (/** @type {number} */ offset) => directory.getUint32(entry + offset, true);
    if (long(0) !== ENTRY.signature) throw new Error("its directory is damaged");
    const text = new Uint8Array(directory.buffer, entry + ENTRY.bytes, short(28));
    const path = new TextDecoder().decode(text);
    if (short(8) & ENCRYPTED) throw new Error(`${path} is encrypted`);
    if (!path.endsWith("/")) files.set(path, await content(zip, long(42), long(20), short(10), path));
    entry += ENTRY.bytes + short(28) + short(30) + short(32);
  }
  return files;
}

/**
 * @param {Blob} zip
 * @param {number} offset of its local header
 * @param {number} bytes as they lie in the zip
 * @param {number} method
 * @param {string} path
 */
async function content(zip, offset, bytes, method, path) {
  const header = await view(zip, offset, offset + LOCAL.bytes);
  if (header.byteLength < LOCAL.bytes || header.getUint32(0, true) !== LOCAL.signature) {
    throw new Error(`${path} is not where the directory says`);
  }
  const start = offset + LOCAL.bytes + header.getUint16(26, true) + header.getUint16(28, true);
  const packed = zip.slice(start, start + bytes);
  if (method === STORED) return packed;
  if (method !== DEFLATED) throw new Error(`${path} is compressed by method ${method}, not by deflate`);
  const inflated = packed.stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Response(inflated).blob();
}
