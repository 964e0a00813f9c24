// The page: what the server offers, what is asked for, what happens meanwhile, and the address that says all that.

import { queryOf, settingsOf } from "./address.js";
import { MAX_CLASSES, findClasses, getModel, isAbort } from "./api.js";
import { clearAlert, showDone, showFailure, showRunning } from "./bar.js";
import { $ } from "./dom.js";
import { Editor } from "./editor.js";
import { Form, clearErrors, showFieldError } from "./form.js";
import { Gallery } from "./gallery.js";
import { askForKey, listenToKey } from "./keyprompt.js";
import { make } from "./making.js";
import { nameOf, newRun, picturesOf } from "./run.js";
import { Tiles } from "./tiles.js";
import { counted, inWords } from "./words.js";

const FIRST_CLASSES = 48;
const WIDE = matchMedia("(min-width: 60rem)");

const cameFromHere = history.state !== null; // a reload, or Back: what the address says was made already
let hasStarted = false; // the first image goes before the samples
let running = null; // the AbortController of what is under way
const gallery = new Gallery({ onReuse: reuse, onEdit: edit });
const form = new Form({
  onSubmit: () => generate(),
  onChange: keepAddress,
  onPick: (item) => tiles.mark(item),
  onSearchError: (error) => explain(error, searchAgain),
});
const tiles = new Tiles({
  promptOf: (item) => form.known.promptOf(item),
  isBusy: () => running !== null || !hasStarted,
  onPick: (item) => {
    form.classes.pick(item);
    generate();
  },
});
const editor = new Editor({ promptOf: (item) => form.known.promptOf(item) });
const restored = gallery.restore();

/** Ask the server what it offers, and make a first image. */
async function start() {
  clearProblems();
  try {
    const { items, total } = await learn();
    await restored;
    const asked = settingsOf(location.search);
    if (isFirst(asked)) await generate({ seed: asked.seed, isUnasked: true });
    hasStarted = true;
    if (items.length < total) await loadClasses();
  } catch (error) {
    explain(error, start);
  }
}

/** What the server offers, and the settings of the address in the controls. */
async function learn() {
  const [model, { data, total }] = await Promise.all([getModel(), findClasses("", undefined, FIRST_CLASSES)]);
  form.offer(model);
  editor.offer(model);
  offerClasses(data, total);
  showAddress(history.state);
  if (!form.className && data.length) form.classes.pick(data[0]);
  return form.known;
}

/** Whether an image is to be made unasked: for a visitor who has none, and for a link that is new here. */
function isFirst(asked) {
  if (!form.className) return false;
  if (!gallery.newest) return true;
  return Boolean(asked.prompt) && !cameFromHere && !gallery.views.some(({ run }) => run.query === location.search);
}

function offerClasses(items, total) {
  form.offerClasses(items, total);
  tiles.offer(form.model, items);
  tiles.mark(form.chosen);
}

async function loadClasses() {
  const { data, total } = await findClasses("", undefined, MAX_CLASSES);
  offerClasses(data, total);
}

function searchAgain() {
  clearProblems();
  form.classes.showAll();
}

/** Make images as the controls say. `isUnasked`: nobody pressed anything, so a busy server is left alone. */
async function generate({ seed, isUnasked = false } = {}) {
  if (running) return;
  running = new AbortController();
  showRunning(true);
  clearProblems();
  try {
    if (!form.model) await learn();
    await makeRun(seed, isUnasked);
  } catch (error) {
    explain(error, () => generate());
  }
  running = null;
  hasStarted = true;
  showRunning(false);
}

async function makeRun(seed, isUnasked) {
  const began = performance.now();
  let view = null;
  try {
    const { bodies, rounds, settings } = form.read();
    if (seed !== undefined) bodies.forEach((body) => (body.seed = settings.seed = seed));
    const query = queryOf(settings, form.defaults);
    setAddress(query, true);
    offerSeed(settings.seed);
    const run = newRun({ model: form.model, className: form.className, bodies, defaults: form.defaults, query });
    view = gallery.begin(run, isUnasked);
    await make(run, view, { rounds, signal: running.signal, patient: !isUnasked });
    const seconds = (performance.now() - began) / 1000;
    showDone(`${counted(picturesOf(run).length, "image")} in ${seconds.toFixed(2)} s.`);
    await gallery.end(view);
  } catch (error) {
    if (view) await gallery.end(view, isAbort(error) ? "Cancelled." : inWords(error));
    if (isUnasked && error.isBusy) showDone("The server is busy just now. Press Generate to wait for your turn.");
    else explain(error, () => generate(), view?.run.sides.findIndex((side) => !side.made));
  }
}

function explain(error, again, side = 0) {
  if (error.status === 401) {
    showDone("This server asks for a key.");
    askForKey(error);
  } else if (showFieldError(error, side)) {
    showDone("");
  } else {
    showFailure(error, again);
  }
}

function clearProblems() {
  clearErrors();
  clearAlert();
}

function reuse(settings) {
  form.show(settings);
  keepAddress();
  $("generate").focus();
}

function edit(picture) {
  editor.open(picture.blob, nameOf(picture), form.known.find(`#${picture.side.made.label}`));
}

function offerSeed(seed) {
  $("use-seed").textContent = seed;
  $("last-seed").hidden = false;
}

/** The address says what the controls say, so that Reload keeps it, and Back leads to what was made before. */
function keepAddress() {
  if (form.model) setAddress(queryOf(form.settings(), form.defaults), false);
}

/** An entry of the browser's history for each run, and one for what has been changed since the last. */
function setAddress(query, isMade) {
  const state = { isRandom: $("seed").value === "", made: isMade ? query : null };
  const last = history.state?.made ?? null; // what was made with the entry as it is
  if (last !== null && last !== query) history.pushState(state, "", query);
  else history.replaceState({ ...state, made: state.made ?? last }, "", query);
}

/** The settings of the address. A seed that was drawn is offered, and the next one is drawn again. */
function showAddress(state) {
  const asked = settingsOf(location.search);
  form.show(state?.isRandom ? { ...asked, seed: null } : asked);
  if (state?.isRandom && asked.seed !== undefined) offerSeed(asked.seed);
}

addEventListener("popstate", ({ state }) => form.model && showAddress(state));

/** An information button opens the words that it is about. */
document.addEventListener("click", ({ target }) => {
  const button = target.closest(".info");
  if (!button) return;
  const words = $(button.getAttribute("aria-controls"));
  words.hidden = !words.hidden;
  button.setAttribute("aria-expanded", String(!words.hidden));
});

function fold() {
  $("settings").open = WIDE.matches;
}

WIDE.addEventListener("change", fold);
fold();
listenToKey(() => (form.model ? generate() : start()));
$("cancel").addEventListener("click", () => running?.abort());
start();
