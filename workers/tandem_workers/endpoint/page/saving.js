// What leaves the page: files, text and pictures.

import { announce } from "./announce.js";

/** Offer a Blob as a file of this name. */
export function save(blob, filename) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = filename;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Put text into the clipboard; whether that worked. */
export async function copyText(text) {
  // the clipboard API exists on https and localhost only; a server in a local network is neither
  if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
  const area = document.createElement("textarea");
  area.value = text;
  const dialog = document.querySelector("dialog[open]");
  (dialog ?? document.body).append(area); // outside an open dialog nothing can be selected
  const focused = document.activeElement;
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return done;
}

export const canCopyImages = Boolean(navigator.clipboard?.write && window.ClipboardItem);

/** Put a picture into the clipboard, as PNG: browsers take no other format. */
export function copyImage(blob) {
  const item = new ClipboardItem({ "image/png": blob.type === "image/png" ? blob : asPng(blob) });
  return navigator.clipboard.write([item]).then(() => true, () => false);
}

async function asPng(blob) {
  const bitmap = await createImageBitmap(blob);
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

/** A button that says for a moment what came of it. `act` gives whether it worked. */
export function onPress(button, act, done = "Copied", failed = "Not copied") {
  const text = button.textContent;
  button.addEventListener("click", async () => {
    button.textContent = (await act()) ? done : failed;
    announce(button.textContent);
    setTimeout(() => (button.textContent = text), 1600);
  });
}
