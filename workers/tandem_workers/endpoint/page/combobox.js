// Class search: an input with a list of matching classes, as the ARIA practices describe a combobox.

import { same } from "./classes.js";
import { oneLine } from "./words.js";

const DEBOUNCE_MS = 120;

/**
 * @param search (query, signal) => {data: [{id, name}], total}
 * @param promptOf item => what to ask the API for
 * @param onError told what `search` throws, abortion apart
 */
export class Combobox {
  constructor({ input, list, popup, note, search, promptOf, onError }) {
    Object.assign(this, { input, list, popup, note, search, promptOf, onError });
    this.items = [];
    this.active = -1; // index of the highlighted item
    this.picked = null;
    this.isPending = false; // a search for what was typed is under way
    this.picksFirst = false; // Enter came before what was searched for
    this.listen();
  }

  /** What to ask the API for: the class that was picked, or what was typed. */
  get prompt() {
    return this.chosen ? this.promptOf(this.chosen) : this.input.value.trim();
  }

  /** The class that was picked, unless something was typed since. */
  get chosen() {
    return this.picked && this.input.value === this.spelling ? this.picked : null;
  }

  pick(item) {
    this.picked = item;
    this.input.value = oneLine(item.name);
    this.spelling = this.input.value;
    this.close();
    this.input.dispatchEvent(new Event("change", { bubbles: true }));
  }

  listen() {
    const { input, list } = this;
    input.addEventListener("input", () => this.searchSoon());
    input.addEventListener("click", () => this.isOpen || this.showAll());
    input.addEventListener("focus", () => input.select());
    input.addEventListener("blur", () => this.close());
    input.addEventListener("keydown", (event) => this.onKey(event));
    list.addEventListener("mousedown", (event) => event.preventDefault()); // the input keeps the focus
    list.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (option) this.pick(this.items[[...list.children].indexOf(option)]);
    });
  }

  onKey(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      if (this.isOpen) this.move(step);
      else this.showAll();
    } else if (event.key === "Escape" && this.isOpen) {
      event.preventDefault();
      this.close();
    } else if (["Enter", "Tab"].includes(event.key) && this.isOpen && this.active >= 0) {
      if (event.key === "Enter") event.preventDefault(); // the next Enter submits
      this.pick(this.items[this.active]);
    } else if (event.key === "Enter" && this.isPending) {
      event.preventDefault();
      this.picksFirst = true;
    } else if (event.key === "Enter") {
      this.close();
    }
  }

  get isOpen() {
    return !this.popup.hidden;
  }

  searchSoon() {
    this.stopSearch();
    this.highlight(-1); // what is shown belongs to what was typed before
    this.isPending = true;
    this.timer = setTimeout(() => this.show(this.input.value.trim()), DEBOUNCE_MS);
  }

  /** All classes with the present one highlighted: whoever opens the list wants another one. */
  showAll() {
    this.stopSearch();
    return this.show("");
  }

  async show(query) {
    const search = new AbortController();
    this.running = search;
    try {
      const found = await this.search(query, search.signal);
      if (!search.signal.aborted) this.render(found);
    } catch (error) {
      if (error.name !== "AbortError") this.onError(error);
    }
  }

  render({ data, total }) {
    this.items = data;
    this.isPending = false;
    this.list.replaceChildren(...data.map((item) => optionOf(item, this.list.id)));
    this.note.textContent = noteOf(data.length, total);
    this.note.hidden = !this.note.textContent;
    this.list.hidden = !data.length;
    this.popup.hidden = false;
    this.input.setAttribute("aria-expanded", String(data.length > 0));
    const typed = this.input.value.trim();
    this.highlight(Math.max(0, data.findIndex((item) => same(item.name, typed))));
    if (this.picksFirst && data.length) this.pick(data[this.active]);
    this.picksFirst = false;
  }

  move(step) {
    const count = this.items.length;
    if (count) this.highlight((Math.max(this.active, step > 0 ? -1 : 0) + step + count) % count);
  }

  /** -1: none. */
  highlight(index) {
    this.list.querySelector("[aria-selected=true]")?.setAttribute("aria-selected", "false");
    const option = this.list.children[index];
    this.active = option ? index : -1;
    option?.setAttribute("aria-selected", "true");
    option?.scrollIntoView({ block: "nearest" });
    if (option) this.input.setAttribute("aria-activedescendant", option.id);
    else this.input.removeAttribute("aria-activedescendant");
  }

  close() {
    this.stopSearch();
    this.popup.hidden = true;
    this.highlight(-1);
    this.input.setAttribute("aria-expanded", "false");
  }

  stopSearch() {
    this.isPending = this.picksFirst = false;
    clearTimeout(this.timer);
    this.running?.abort();
  }
}

function optionOf({ id, name }, listId) {
  const option = document.createElement("li");
  Object.assign(option, { id: `${listId}-${id}`, textContent: oneLine(name), role: "option" });
  option.setAttribute("aria-selected", "false");
  return option;
}

function noteOf(shown, total) {
  if (!shown) return "No class matches.";
  return shown < total ? `${shown} of ${total.toLocaleString("en")} classes: type to narrow` : "";
}
