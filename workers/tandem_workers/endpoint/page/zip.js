// ZIP files without compression (images have theirs already). Source: PKWARE's APPNOTE, sections 4.3.7, 4.3.12, 4.3.16.

const UTF8_NAMES = 0x0800;
const VERSION = 20;
const JAN_1_1980 = 0x21; // a date in DOS's format; the same files give the same bytes

/** A Blob of [{name, blob}]. A name that comes twice gets a number. */
export async function zipped(files) {
  const parts = [];
  const directory = [];
  const names = new Set();
  let offset = 0;
  for (const { name, blob } of files) {
    const data = new Uint8Array(await blob.arrayBuffer());
    const path = new TextEncoder().encode(unused(name, names));
    const about = [[VERSION, 2], [UTF8_NAMES, 2], [0, 2], [0, 2], [JAN_1_1980, 2], [crc32(data), 4], [data.length, 4], [data.length, 4], [path.length, 2], [0, 2]];
    parts.push(record([0x04034b50, 4], ...about), path, data);
    directory.push(record([0x02014b50, 4], [VERSION, 2], ...about, [0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]), path);
    offset += 30 + path.length + data.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = record([0x06054b50, 4], [0, 2], [0, 2], [files.length, 2], [files.length, 2], [size, 4], [offset, 4], [0, 2]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

function unused(name, names) {
  let free = name;
  for (let count = 2; names.has(free); count += 1) free = name.replace(/(?=\.\w+$)/, `-${count}`);
  names.add(free);
  return free;
}

/** Little-endian fields of 2 and 4 bytes. */
function record(...fields) {
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [, width]) => sum + width, 0)));
  let at = 0;
  for (const [value, width] of fields) {
    if (width === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += width;
  }
  return new Uint8Array(view.buffer);
}

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let rest = byte;
  for (let bit = 0; bit < 8; bit += 1) rest = rest & 1 ? (rest >>> 1) ^ 0xedb88320 : rest >>> 1;
  return rest;
});

function crc32(data) {
  let rest = ~0;
  for (const byte of data) rest = TABLE[(rest ^ byte) & 255] ^ (rest >>> 8);
  return ~rest >>> 0;
}
