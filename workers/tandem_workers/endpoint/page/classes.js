// What a class is called in a request: its name where that says which one is meant, else its number.

const MAX_PROMPT = 200; // characters, the API's limit

/** `items`: all classes, or the first of `total`. */
export class Classes {
  constructor(items, total) {
    Object.assign(this, { items, total });
    this.uses = new Map();
    for (const { name } of items) {
      for (const spelling of new Set([name, ...name.split(",")].map(plain))) {
        this.uses.set(spelling, (this.uses.get(spelling) ?? 0) + 1);
      }
    }
  }

  get areAll() {
    return this.items.length === this.total;
  }

  /** "fruit", or "#3": a number that no class can hide by being called so. */
  promptOf({ id, name }) {
    const isPlain = name.length <= MAX_PROMPT && name === name.trim() && !/\p{C}|^#?\d+$/u.test(name);
    return isPlain && this.areAll && this.uses.get(plain(name)) === 1 ? name : `#${id}`;
  }

  /** The class that `promptOf` means by a prompt, if it is among `items`. */
  find(prompt) {
    const number = /^#(\d+)$/.exec(prompt)?.[1];
    return this.items.find(({ id, name }) => (number === undefined ? same(name, prompt) : id === Number(number)));
  }
}

export function same(a, b) {
  return plain(a) === plain(b);
}

/** As the API compares names: case, underscores and runs of spaces make no difference. */
function plain(name) {
  return name.replaceAll("_", " ").replace(/\s+/g, " ").trim().toLowerCase();
}
