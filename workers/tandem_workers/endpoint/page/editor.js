// The editor: a picture is opened, what shall change is painted over, and the results stand beside it.

import { announce } from "./announce.js";
import { ApiError, editImage, findClasses, imageBlob, isAbort, serverSentEvents } from "./api.js";
import { Brush } from "./brush.js";
import { Combobox } from "./combobox.js";
import { $, addressOf, element, release } from "./dom.js";
import { reveal } from "./reveal.js";
import { save } from "./saving.js";
import { describeSplit, duration, extensionOf, fileStem, inWords } from "./words.js";

const NONE = { id: "none", name: "none" }; // filled without a class
const PREVIEWS = 3; // each is the whole picture
const MAX_BYTES = 24 * 2 ** 20; // the server takes a little more, mask and fields included
const MAX_PIXELS = 16 * 2 ** 20;

export class Editor {
  /** `promptOf(item)`: what to ask the API for. */
  constructor({ promptOf }) {
    Object.assign(this, { dialog: $("editor"), picture: null, running: null, model: null });
    this.brush = new Brush({ canvas: $("editor-brush"), onChange: () => this.showTools() });
    this.classes = new Combobox({
      input: $("editor-class"),
      list: $("editor-class-list"),
      popup: $("editor-class-popup"),
      note: $("editor-class-note"),
      search: searchWithNone,
      promptOf: (item) => (item === NONE ? this.none : promptOf(item)),
      onError: (error) => this.fail(error),
    });
    this.listen();
  }

  /** The prompt for no class: its number, which no class can hide by being called so. */
  get none() {
    return `#${this.model.num_classes}`;
  }

  offer(model) {
    const { num_scales: numScales, defaults } = model;
    this.model = model;
    $("editor-steps").max = numScales;
    $("editor-steps").value = defaults.draft_steps;
    $("editor-keep").max = numScales - 1;
    $("editor-count").max = model.max_n;
    this.showSettings();
  }

  /** Open the editor, with a picture if there is one; `item` is the class to begin with. */
  async open(blob = null, name = "picture", item = null) {
    if (!this.model) return;
    if (!this.dialog.open) this.dialog.showModal();
    if (item) this.classes.pick(item);
    else if (!this.classes.prompt) this.classes.pick(NONE);
    if (blob) await this.load(blob, name);
    (this.picture ? $("editor-brush") : $("editor-open")).focus();
  }

  /** Show a picture to edit; whether that worked. */
  async load(blob, name) {
    this.say("");
    this.loading = blob;
    try {
      const { naturalWidth: width, naturalHeight: height } = await decoded(blob, name);
      if (this.loading !== blob) return false; // another one was opened meanwhile
      this.running?.abort();
      this.show(blob, name, width, height);
      return true;
    } catch (error) {
      if (this.loading === blob) this.fail(error);
      return false;
    }
  }

  show(blob, name, width, height) {
    $("editor-picture").src = addressOf(blob);
    $("editor-picture").alt = `The picture to edit: ${name}`;
    this.picture = { blob, name, ratio: width / height };
    $("editor-sheet").style.setProperty("--ratio", width / height);
    $("editor-sheet").hidden = false;
    $("editor-empty").hidden = true;
    this.brush.begin(width, height);
  }

  listen() {
    const { dialog, brush } = this;
    $("edit-picture").addEventListener("click", () => this.open());
    $("editor-open").addEventListener("click", () => $("editor-file").click());
    $("editor-file").addEventListener("change", () => this.take($("editor-file").files));
    document.addEventListener("dragover", (event) => event.dataTransfer.types.includes("Files") && event.preventDefault());
    document.addEventListener("drop", (event) => {
      if (!event.dataTransfer.files.length) return;
      event.preventDefault();
      this.take(event.dataTransfer.files);
    });
    dialog.querySelectorAll("input[name=tool]").forEach((choice) => {
      choice.addEventListener("change", () => (brush.tool = choice.value));
    });
    $("editor-size").addEventListener("input", () => (brush.share = $("editor-size").valueAsNumber / 100));
    $("editor-undo").addEventListener("click", () => brush.undo());
    $("editor-clear").addEventListener("click", () => brush.clear());
    for (const id of ["editor-steps", "editor-keep"]) $(id).addEventListener("input", () => this.showSettings());
    $("editor-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    $("editor-cancel").addEventListener("click", () => this.running?.abort());
    $("editor-close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => this.running?.abort());
    dialog.addEventListener("keydown", (event) => {
      if (event.key.toLowerCase() !== "z" || !(event.ctrlKey || event.metaKey) || event.target.matches("input[type=text], input[type=number]")) return;
      event.preventDefault();
      brush.undo();
    });
  }

  async take(files) {
    const [file] = files;
    if (file) await this.open(file, file.name);
    $("editor-file").value = ""; // the same file can be opened again
  }

  showTools() {
    $("editor-undo").disabled = $("editor-clear").disabled = this.brush.isEmpty;
  }

  showSettings() {
    const { num_scales: numScales } = this.model;
    const steps = $("editor-steps").valueAsNumber;
    const keep = $("editor-keep").valueAsNumber;
    const kept = keep ? `the first ${keep} of ${numScales} scales stay` : "drawn anew at all scales";
    $("editor-steps-text").textContent = `N = ${steps}: ${describeSplit(steps, numScales)}`;
    $("editor-steps").setAttribute("aria-valuetext", $("editor-steps-text").textContent);
    $("editor-keep-text").textContent = kept;
    $("editor-keep").setAttribute("aria-valuetext", kept);
  }

  /** Ask for the edit, and show its images as they come. */
  async run() {
    if (this.running) return;
    this.say("");
    if (!this.picture) return this.fail(new ApiError(0, "open a picture first"));
    const keep = $("editor-keep").valueAsNumber;
    if (this.brush.isEmpty && !keep) return this.fail(new ApiError(0, "paint over what shall be drawn anew, or keep some scales"));
    this.running = new AbortController();
    this.showRunning(true);
    try {
      await this.make(await this.form(keep));
    } catch (error) {
      if (isAbort(error)) this.say("Cancelled.");
      else this.fail(error);
    }
    this.running = null;
    this.showRunning(false);
  }

  async form(keep) {
    const seed = crypto.getRandomValues(new Uint32Array(1))[0];
    const fields = {
      image: this.picture.blob,
      prompt: this.classes.prompt || this.none,
      seed,
      n: $("editor-count").value,
      draft_steps: $("editor-steps").value,
      keep_scales: keep,
      stream: true,
      partial_images: Math.min(PREVIEWS, this.model.num_scales - 1 - keep),
    };
    if (!this.brush.isEmpty) fields.mask = await this.brush.mask();
    const form = new FormData();
    for (const [name, value] of Object.entries(fields)) form.append(name, value);
    return form;
  }

  async make(form) {
    const began = performance.now();
    const { picture, running } = this;
    this.say("Waiting for the server…");
    const response = await editImage(form, running.signal);
    const places = Array.from({ length: Number(form.get("n")) }, () => element("div", { className: "result" }));
    places.forEach((place) => place.style.setProperty("--ratio", picture.ratio));
    const unfinished = new Set(places);
    $("editor-results").prepend(...places);
    try {
      for await (const event of serverSentEvents(response)) {
        const place = places[event.image_index];
        const isLast = event.type === "image_edit.completed";
        place.querySelectorAll("img").forEach((image) => release(image.blob));
        place.replaceChildren(...(isLast ? this.resultOf(picture, event, places.length) : [previewOf(event)]));
        if (isLast) unfinished.delete(place);
        else this.say(`Scale ${event.scale} of ${event.num_scales}`);
      }
    } finally {
      unfinished.forEach((place) => place.remove());
    }
    if (unfinished.size) throw new ApiError(0, "the connection ended before everything was made");
    const seconds = (performance.now() - began) / 1000;
    this.say(`${places.length === 1 ? "The edit is" : `${places.length} edits are`} made, in ${duration(seconds)}.`);
    announce($("editor-status").textContent);
    places[0].scrollIntoView({ block: "nearest" });
  }

  /** Before and after under one slider, and what can be done with it. */
  resultOf(picture, event, count) {
    const { tandem, output_format: format, image_index: index } = event;
    const blob = imageBlob(event);
    const name = [tandem.class_name, `seed ${tandem.seed}`, count > 1 && `image ${index + 1} of ${count}`].filter(Boolean).join(", ");
    const both = reveal({ name: "before", blob: picture.blob }, { name: "after", blob });
    both.querySelector("input").value = 0;
    both.querySelector("input").dispatchEvent(new Event("input"));
    const file = `${fileStem(picture.name)}-${fileStem(tandem.class_name)}-${tandem.seed}-${index}.${extensionOf(format)}`;
    const saves = element("button", { type: "button", textContent: "Save" });
    const goesOn = element("button", { type: "button", textContent: "Go on with this" });
    saves.setAttribute("aria-label", `Save: ${name}`);
    goesOn.setAttribute("aria-label", `Go on with this: ${name}`);
    saves.addEventListener("click", () => save(blob, file));
    goesOn.addEventListener("click", async () => (await this.load(blob, name)) && $("editor-brush").focus());
    const said = element("p", { className: "quiet", textContent: tandem.edit.message ?? name });
    return [both, said, element("div", { className: "actions" }, saves, goesOn)];
  }

  showRunning(isRunning) {
    $("editor-run").setAttribute("aria-disabled", String(isRunning));
    if (!isRunning && document.activeElement === $("editor-cancel")) $("editor-run").focus();
    $("editor-cancel").hidden = !isRunning;
  }

  say(text) {
    $("editor-status").textContent = text;
    $("editor-alert").textContent = "";
  }

  fail(error) {
    if (!(error instanceof ApiError)) console.error(error);
    $("editor-status").textContent = "";
    $("editor-alert").textContent = (error.isBusy ? "The server is busy. " : "") + inWords(error);
  }
}

function previewOf(event) {
  const blob = imageBlob(event);
  const image = element("img", { className: "picture", src: addressOf(blob), alt: `The edit after scale ${event.scale}`, blob });
  return element("div", { className: "frame" }, image);
}

/** The picture of a file, once it is known to be one that the server takes. */
async function decoded(blob, name) {
  if (blob.size > MAX_BYTES) throw new ApiError(0, `expected a file of at most ${MAX_BYTES / 2 ** 20} MB`);
  const image = new Image();
  image.src = addressOf(blob);
  await image.decode().catch(() => {
    throw new ApiError(0, `${name} is no picture that this browser can show`);
  });
  const { naturalWidth: width, naturalHeight: height } = image;
  if (width * height > MAX_PIXELS) throw new ApiError(0, `expected at most 16 million pixels, got ${width} × ${height}`);
  return image;
}

/** The classes that match, and "none". */
async function searchWithNone(query, signal) {
  const { data, total } = await findClasses(query, signal);
  return NONE.name.startsWith(query.toLowerCase()) ? { data: [NONE, ...data], total: total + 1 } : { data, total };
}
