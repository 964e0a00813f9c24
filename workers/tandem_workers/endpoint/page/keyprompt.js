// A server that wants an API key is no error: the page asks for it in words.

import { announce } from "./announce.js";
import { apiKey } from "./api.js";
import { $ } from "./dom.js";
import { inWords } from "./words.js";

/** `onKey`: somebody has given a key. */
export function listenToKey(onKey) {
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    apiKey.set($("key").value.trim());
    $("key-prompt").hidden = true;
    onKey();
  });
}

/** Ask, after the server refused: without a key, or the one that was given. */
export function askForKey(error) {
  const wasWrong = apiKey.get() !== "";
  $("key-error").textContent = wasWrong ? inWords(error) : "";
  if (wasWrong) $("key").setAttribute("aria-invalid", "true");
  $("key").value = apiKey.get();
  $("key-prompt").hidden = false;
  $("key").focus();
  announce("This server asks for a key.");
}
