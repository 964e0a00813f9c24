// Short ways to reach and make elements. Text comes in as text alone: names of classes are anybody's.

export const $ = (id) => document.getElementById(id);

/** A copy of a template's one element. */
export function instantiate(id) {
  return $(id).content.firstElementChild.cloneNode(true);
}

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const addresses = new WeakMap();

/** The address of a Blob; one for all that show it. */
export function addressOf(blob) {
  if (!addresses.has(blob)) addresses.set(blob, URL.createObjectURL(blob));
  return addresses.get(blob);
}

/** Let go of a Blob that nothing shows any more. */
export function release(blob) {
  if (!blob) return;
  if (addresses.has(blob)) URL.revokeObjectURL(addresses.get(blob));
  addresses.delete(blob);
}
