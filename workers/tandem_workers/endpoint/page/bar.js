// The bar that never leaves the window: Generate and Cancel, what is going on, and what went wrong.

import { announce, announceProgress } from "./announce.js";
import { ApiError, isAbort } from "./api.js";
import { $ } from "./dom.js";
import { counted, inWords } from "./words.js";

const FIRST_GUESS_S = 3; // where a busy server does not say when to come again
const MAX_TRIES = 20;

/** What goes on, seen at once and spoken now and then. `share` of it that is done; null: not known. */
export function showProgress(text, share = null) {
  $("status").textContent = text;
  announceProgress(text);
  if (share === null) $("progress").removeAttribute("value");
  else $("progress").value = share;
}

export function showDone(text) {
  $("status").textContent = text;
  announce(text);
}

export function showRunning(isRunning) {
  // not disabled: the focus of the keyboard would be lost
  $("generate").setAttribute("aria-disabled", String(isRunning));
  if (!isRunning && document.activeElement === $("cancel")) $("generate").focus();
  $("cancel").hidden = !isRunning;
  $("progress").hidden = !isRunning;
  $("bar").dataset.state = isRunning ? "running" : "idle";
}

/** The error in words, and a button that does `again`. */
export function showAlert(error, again) {
  const isOurs = error instanceof ApiError;
  if (!isOurs) console.error(error);
  $("status").textContent = "";
  $("alert").textContent = (error.isBusy ? "The server is busy. " : "") + inWords(error);
  offerRetry(isOurs && again, "Try again");
}

export function clearAlert() {
  $("alert").textContent = "";
  offerRetry(null);
}

/** The answer to `request()`; a busy server is asked again when it said it would have room. */
export async function patiently(request, signal) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await request();
    } catch (error) {
      if (!error.isBusy || tries === MAX_TRIES) throw error;
      await countDown(error, tries, signal);
    }
  }
}

/** Counts the seconds in words, until they are over or "Try now" is pressed. An abort is thrown. */
async function countDown(error, tries, signal) {
  const until = performance.now() + 1000 * (error.retryAfter ?? FIRST_GUESS_S);
  let isOver = false;
  offerRetry(() => (isOver = true), "Try now");
  $("bar").dataset.state = "waiting";
  $("progress").removeAttribute("value");
  const tried = tries > 1 ? ` (tried ${counted(tries, "time")})` : "";
  const inSeconds = () => Math.max(0, Math.ceil((until - performance.now()) / 1000));
  announce(`The server is busy. Trying again in ${counted(inSeconds(), "second")}.`);
  $("status").title = inWords(error);
  while (!isOver && inSeconds() > 0) {
    $("status").textContent = `The server is busy. Trying again in ${counted(inSeconds(), "second")}${tried}…`;
    await passed(200, signal);
  }
  $("status").title = "";
  offerRetry(null);
  $("bar").dataset.state = "running";
  $("status").textContent = "Trying again…";
}

function passed(ms, signal) {
  return new Promise((resolve, reject) => {
    const fail = () => reject(signal.reason);
    if (signal.aborted) fail();
    signal.addEventListener("abort", fail, { once: true });
    setTimeout(() => {
      signal.removeEventListener("abort", fail);
      resolve();
    }, ms);
  });
}

function offerRetry(act, text = "") {
  if (!act && document.activeElement === $("retry")) $("generate").focus();
  $("retry").hidden = !act;
  $("retry").textContent = text;
  $("retry").onclick = act;
}

/** How the bar ends after a failure or an abort. */
export function showFailure(error, again) {
  if (isAbort(error)) {
    offerRetry(null);
    showDone("Cancelled.");
  } else {
    showAlert(error, again);
  }
}
