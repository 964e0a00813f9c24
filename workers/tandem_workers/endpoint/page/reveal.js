// Before and after: a range input over two stacked images says how much of the left one is seen.

export class Reveal {
  /** `frame` holds the images and `input`, `names` two elements for the names of left and right. */
  constructor({ frame, input, names, left, right }) {
    Object.assign(this, { frame, input, left, right });
    const [leftName, rightName] = names.children;
    leftName.textContent = left;
    rightName.textContent = right;
    names.hidden = false;
    input.setAttribute("aria-label", `Reveal: ${left} on the left, ${right} on the right`);
    input.addEventListener("input", () => this.move());
    this.move();
  }

  move() {
    const percent = this.input.valueAsNumber;
    this.frame.style.setProperty("--reveal", `${percent}%`);
    this.input.setAttribute("aria-valuetext", `${percent} % ${this.left}, ${100 - percent} % ${this.right}`);
  }

  /** The left image has the whole frame until there is something of the right one. */
  open() {
    if (!this.input.disabled) return;
    this.input.disabled = false;
    this.input.value = 50;
    this.move();
  }
}
