// What is painted over a picture: strokes and boxes, each of which can be taken back. Mouse, finger and keyboard.

import { element } from "./dom.js";

const STEP = 0.5; // of the brush, an arrow key
const COLOUR = "#d0338f"; // on the page; half of it is seen through

export class Brush {
  /** `canvas` lies over the picture; `onChange()`: something was painted, or taken back. */
  constructor({ canvas, onChange }) {
    Object.assign(this, { canvas, onChange, context: canvas.getContext("2d"), marks: [], mark: null, tool: "brush", share: 0.12 });
    this.ring = element("span", { className: "ring", hidden: true });
    canvas.after(this.ring);
    this.listen();
  }

  /** A picture of this many pixels, with nothing painted over it. */
  begin(width, height) {
    Object.assign(this.canvas, { width, height });
    this.marks = [];
    this.mark = null;
    this.at = { x: width / 2, y: height / 2 };
    this.redraw();
  }

  get isEmpty() {
    return !this.marks.length;
  }

  /** Pixels of the picture. */
  get width() {
    return Math.max(1, this.share * Math.min(this.canvas.width, this.canvas.height));
  }

  undo() {
    this.mark = null;
    this.marks.pop();
    this.redraw();
  }

  clear() {
    this.mark = null;
    this.marks = [];
    this.redraw();
  }

  /** Transparent where the picture is drawn anew: a PNG. */
  async mask() {
    const { width, height } = this.canvas;
    const sheet = element("canvas", { width, height });
    const context = sheet.getContext("2d");
    context.fillRect(0, 0, width, height);
    context.globalCompositeOperation = "destination-out";
    context.drawImage(this.canvas, 0, 0);
    return new Promise((resolve) => sheet.toBlob(resolve, "image/png"));
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", () => this.lift());
    canvas.addEventListener("pointercancel", () => this.lift());
    canvas.addEventListener("pointerleave", () => this.mark || (this.ring.hidden = true));
    canvas.addEventListener("keydown", (event) => this.onKey(event));
    canvas.addEventListener("focus", () => canvas.matches(":focus-visible") && this.showRing());
    canvas.addEventListener("blur", () => {
      this.lift();
      this.ring.hidden = true;
    });
  }

  press(event) {
    if (event.button || !event.isPrimary) return; // a second finger is none of ours
    this.canvas.setPointerCapture(event.pointerId);
    this.at = this.placeOf(event);
    this.start();
  }

  move(event) {
    if (!event.isPrimary) return;
    this.at = this.placeOf(event);
    this.showRing();
    if (this.mark) this.follow();
  }

  onKey(event) {
    const step = this.width * STEP;
    const way = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
    if (way) {
      this.at.x = Math.min(this.canvas.width, Math.max(0, this.at.x + way[0]));
      this.at.y = Math.min(this.canvas.height, Math.max(0, this.at.y + way[1]));
      if (this.mark) this.follow();
    } else if (event.key === " " || event.key === "Enter") {
      if (this.mark) this.lift();
      else this.start();
    } else {
      return;
    }
    event.preventDefault();
    this.showRing();
  }

  start() {
    this.mark = { tool: this.tool, width: this.width, points: [{ ...this.at }, { ...this.at }] };
    this.marks.push(this.mark);
    this.redraw();
  }

  follow() {
    const { points, tool } = this.mark;
    if (tool === "box") points[1] = { ...this.at };
    else points.push({ ...this.at });
    this.redraw();
  }

  lift() {
    this.mark = null;
    this.at = { ...this.at };
  }

  redraw() {
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.marks.forEach((mark) => this.draw(mark));
    this.onChange();
  }

  draw({ tool, width, points }) {
    const { context } = this;
    context.globalCompositeOperation = tool === "eraser" ? "destination-out" : "source-over";
    context.fillStyle = context.strokeStyle = COLOUR;
    if (tool === "box") {
      const [from, to] = points;
      context.fillRect(Math.min(from.x, to.x), Math.min(from.y, to.y), Math.abs(from.x - to.x), Math.abs(from.y - to.y));
      return;
    }
    Object.assign(context, { lineWidth: width, lineCap: "round", lineJoin: "round" });
    context.beginPath();
    points.forEach(({ x, y }) => context.lineTo(x, y));
    context.stroke();
  }

  /** Pixels of the picture under a pointer. */
  placeOf({ clientX, clientY }) {
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    return { x: ((clientX - left) / width) * this.canvas.width, y: ((clientY - top) / height) * this.canvas.height };
  }

  /** Where the brush is, and how wide. */
  showRing() {
    const { ring, canvas, at } = this;
    const across = this.tool === "box" ? 0.02 * canvas.width : this.width;
    ring.hidden = false;
    ring.style.left = `${(100 * at.x) / canvas.width}%`;
    ring.style.top = `${(100 * at.y) / canvas.height}%`;
    ring.style.width = `${(100 * across) / canvas.width}%`;
    ring.dataset.down = Boolean(this.mark);
  }
}
