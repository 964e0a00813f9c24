// What a screen reader is told: the end of things at once, progress at most every few seconds.

import { $ } from "./dom.js";

const QUIET_MS = 5000;
let spokenAt = -Infinity;

/** Say something now. */
export function announce(text) {
  spokenAt = performance.now();
  $("announcer").textContent = text;
}

/** Say something unless something was said just before. */
export function announceProgress(text) {
  if (performance.now() - spokenAt >= QUIET_MS) announce(text);
}
