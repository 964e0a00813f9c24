// The page: images are asked for, arrive scale by scale, and errors are told in words.

import { ApiError, findClasses, generateImages, getModel, serverSentEvents } from "./api.js";
import { Card, nameSplit } from "./card.js";
import { $, Form, clearErrors, inWords, showFieldError } from "./form.js";

const MAX_CARDS = 24;

const form = new Form({ onSubmit: generate, onSearchError: (error) => explain(error, searchAgain) });
let running = null; // the AbortController of what is under way

/** Ask the server what it offers. */
async function start() {
  clearProblems();
  try {
    form.offer(await getModel(), (await findClasses("")).data);
  } catch (error) {
    explain(error, start);
  }
}

function searchAgain() {
  clearProblems();
  form.classes.showAll();
}

async function generate() {
  if (running) return;
  running = new AbortController();
  showRunning(true);
  clearProblems();
  if (!form.model) await start();
  if (form.model) await makeCards();
  running = null;
  showRunning(false);
}

async function makeCards() {
  const run = { cards: [], side: 0 };
  const began = performance.now();
  try {
    const bodies = form.read();
    // One side after the other: at once each would slow the other down, and the times would say nothing.
    for (run.side = 0; run.side < bodies.length; run.side += 1) await makeSide(run, bodies);
    showDone(bodies, performance.now() - began);
  } catch (error) {
    drop(run.cards, error);
    explain(error, generate, run.side);
  }
}

async function makeSide(run, bodies) {
  const body = bodies[run.side];
  const began = performance.now();
  $("status").textContent = "Waiting for the server…";
  const response = await generateImages(body, running.signal);
  if (!run.cards.length) run.cards = addCards(bodies);
  let missing = body.n;
  for await (const event of serverSentEvents(response)) {
    const side = run.cards[event.image_index].sides[run.side];
    if (event.type === "image_generation.completed") {
      side.complete(event);
      missing -= 1;
    } else {
      side.preview(event, performance.now() - began);
      $("status").textContent = progress(event, body, bodies.length);
    }
  }
  if (missing) throw new ApiError(0, "the connection ended before everything was made");
}

function addCards(bodies) {
  const { model, className } = form;
  const onReuse = (body) => {
    form.show(body);
    $("generate").focus();
  };
  const cards = Array.from(
    { length: bodies[0].n },
    (_, index) => new Card({ model, className, bodies, index, onReuse }),
  );
  $("empty").hidden = true;
  $("results").prepend(...cards.map((card) => card.element));
  [...$("results").children].slice(MAX_CARDS).forEach((old) => old.remove());
  cards[0].element.scrollIntoView({ block: "nearest" });
  return cards;
}

/** After an error: cards that show something stay and say what happened, the others go. */
function drop(cards, error) {
  const reason = isAbort(error) ? "Cancelled." : inWords(error);
  for (const card of cards.filter((one) => !one.isDone)) {
    if (card.isBlank) card.element.remove();
    else card.fail(reason);
  }
  $("empty").hidden = $("results").childElementCount > 0;
}

/** "Refiner alone, scale 3 of 7, image 1 of 2" */
function progress({ scale, num_scales: numScales, image_index: index }, { n, draft_steps: draftSteps }, numSides) {
  const parts = [`scale ${scale} of ${numScales}`];
  if (numSides > 1) parts.unshift(nameSplit(draftSteps, numScales));
  if (n > 1) parts.push(`image ${index + 1} of ${n}`);
  const text = parts.join(", ");
  return text[0].toUpperCase() + text.slice(1);
}

function showDone(bodies, elapsedMs) {
  const count = bodies.length * bodies[0].n;
  $("status").textContent = `${count} ${count === 1 ? "image" : "images"} in ${(elapsedMs / 1000).toFixed(2)} s.`;
  $("use-seed").textContent = bodies[0].seed;
  $("last-seed").hidden = false;
}

function showRunning(isRunning) {
  // not disabled: the focus of the keyboard would be lost
  $("generate").setAttribute("aria-disabled", String(isRunning));
  if (!isRunning && document.activeElement === $("cancel")) $("generate").focus();
  $("cancel").hidden = !isRunning;
}

function explain(error, again, side = 0) {
  $("status").textContent = isAbort(error) ? "Cancelled." : "";
  if (!isAbort(error) && !showFieldError(error, side)) showAlert(error, again);
}

function showAlert(error, again) {
  const isOurs = error instanceof ApiError;
  if (!isOurs) console.error(error);
  const busy = error.status === 429 ? "The server is busy. " : "";
  const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  $("alert").textContent = busy + inWords(error) + wait;
  $("retry").hidden = !isOurs;
  $("retry").onclick = again;
}

function clearProblems() {
  clearErrors();
  $("alert").textContent = "";
  if (document.activeElement === $("retry")) $("generate").focus();
  $("retry").hidden = true;
}

function isAbort(error) {
  return error.name === "AbortError";
}

$("cancel").addEventListener("click", () => running?.abort());
start();
