// Animated GIF, coarse to fine. Of all formats that move it is the one that every chat and every slide shows, and it needs
// no server: WebP would need an encoder that Safari lacks. Source: the GIF89a specification, appendices A and F.

import { indexed, paletteOf } from "./palette.js";

const FRAME_CS = 45; // hundredths of a second
const LAST_CS = 200;
const SHOWN_PX = 256; // small images are enlarged to at least this
const BITS = 8;

/** A GIF of image Blobs, the last one longest. `isSmooth`: how they are enlarged. */
export async function animated(blobs, isSmooth) {
  const frames = [];
  for (const blob of blobs) frames.push(await pixelsOf(blob, isSmooth));
  return encodeGif(frames);
}

/** A GIF of ImageData of one size. */
export function encodeGif(frames) {
  const { width, height } = frames[0];
  const palette = paletteOf(frames);
  const colors = Uint8Array.from({ length: 3 << BITS }, (_, i) => palette[Math.trunc(i / 3)]?.[i % 3] ?? 0);
  const parts = [text("GIF89a"), shorts(width, height), [0xf0 | (BITS - 1), 0, 0], colors];
  parts.push([0x21, 0xff, 11], text("NETSCAPE2.0"), [3, 1, 0, 0, 0]); // for ever
  frames.forEach((frame, i) => {
    parts.push([0x21, 0xf9, 4, 4], shorts(i === frames.length - 1 ? LAST_CS : FRAME_CS), [0, 0]);
    parts.push([0x2c], shorts(0, 0, width, height), [0, BITS], ...blocks(compressed(indexed(frame, palette))), [0]);
  });
  parts.push([0x3b]);
  return new Blob(parts.map((part) => Uint8Array.from(part)), { type: "image/gif" });
}

async function pixelsOf(blob, isSmooth) {
  const bitmap = await createImageBitmap(blob);
  const size = bitmap.width * Math.max(1, Math.ceil(SHOWN_PX / bitmap.width));
  const context = new OffscreenCanvas(size, size).getContext("2d");
  Object.assign(context, { imageSmoothingEnabled: isSmooth, imageSmoothingQuality: "high" });
  context.drawImage(bitmap, 0, 0, size, size);
  return context.getImageData(0, 0, size, size);
}

/** LZW with codes of 9 to 12 bits. */
function compressed(indices) {
  const [clear, end] = [1 << BITS, (1 << BITS) + 1];
  const bytes = [];
  let [held, heldBits, width] = [0, 0, BITS + 1];
  const put = (code) => {
    held |= code << heldBits;
    heldBits += width;
    for (; heldBits >= 8; heldBits -= 8, held >>>= 8) bytes.push(held & 255);
  };
  let known = new Map();
  let next = end + 1;
  put(clear);
  let prefix = indices[0];
  for (const index of indices.subarray(1)) {
    const key = (prefix << 8) | index;
    if (known.has(key)) {
      prefix = known.get(key);
      continue;
    }
    put(prefix);
    if (next === 4096) {
      put(clear);
      [known, next, width] = [new Map(), end + 1, BITS + 1];
    } else {
      if (next === 1 << width) width += 1;
      known.set(key, next++);
    }
    prefix = index;
  }
  put(prefix);
  put(end);
  if (heldBits) bytes.push(held & 255);
  return bytes;
}

function* blocks(bytes) {
  for (let at = 0; at < bytes.length; at += 255) {
    const block = bytes.slice(at, at + 255);
    yield [block.length, ...block];
  }
}

function shorts(...values) {
  return values.flatMap((value) => [value & 255, value >> 8]);
}

function text(letters) {
  return [...letters].map((letter) => letter.charCodeAt(0));
}
