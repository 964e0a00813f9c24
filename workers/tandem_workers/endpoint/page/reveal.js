// Two pictures of one seed in one frame: a slider says how much of the left one is seen.

import { addressOf, element, instantiate } from "./dom.js";

/** `left` and `right`: {name, blob}. */
export function reveal(left, right) {
  const frame = instantiate("reveal-template");
  const slider = frame.querySelector("input");
  frame.querySelectorAll("img").forEach((image, i) => {
    image.src = addressOf([left, right][i].blob);
    image.alt = [left, right][i].name;
  });
  const move = () => {
    const percent = slider.valueAsNumber;
    frame.style.setProperty("--reveal", `${percent}%`);
    slider.setAttribute("aria-valuetext", `${percent} % ${left.name}, ${100 - percent} % ${right.name}`);
  };
  slider.setAttribute("aria-label", `Reveal: ${left.name} on the left, ${right.name} on the right`);
  slider.addEventListener("input", move);
  move();
  const names = element("figcaption", {}, element("b", { textContent: left.name }), element("b", { textContent: right.name }));
  return element("figure", { className: "shot both" }, frame, names);
}
