// What is kept of one press of Generate: its requests ("sides": one, or one for each N), images and times. Plain data.

import { queryOf } from "./address.js";
import { median } from "./timing.js";
import { describeSettings, extensionOf, fileStem, nameSplit, oneLine } from "./words.js";

/**
 * `bodies` differ in draft_steps alone. A side's images hold a Blob for each scale; the last one is the image. `times` are
 * the stages' seconds of measured rounds.
 */
export function newRun({ model, className, bodies, defaults, query }) {
  return {
    className: oneLine(className),
    model: { id: model.id, num_scales: model.num_scales, image_size: model.image_size },
    defaults,
    query,
    sides: bodies.map((body) => ({
      body,
      made: null,
      firstMs: null,
      times: [],
      images: Array.from({ length: body.n }, () => ({ scales: Array(model.num_scales).fill(null) })),
    })),
  };
}

export function isWhole(run) {
  return run.sides.every((side) => side.made && side.images.every((image) => image.scales.at(-1)));
}

export function isBlank(run) {
  return run.sides.every((side) => side.images.every((image) => !image.scales.some(Boolean)));
}

/** One entry for each finished image: {run, side, index, blob}. */
export function picturesOf(run) {
  const all = run.sides.flatMap((side) => side.images.map((image, index) => ({ run, side, index, blob: image.scales.at(-1) })));
  return all.filter(({ blob, side }) => blob && side.made);
}

/** "fruit, seed 8, N = 5, image 2 of 3" */
export function nameOf({ run, side, index }) {
  const parts = [run.className, `seed ${side.body.seed}`, nameSplit(side.body.draft_steps, run.model.num_scales)];
  if (side.body.n > 1) parts.push(`image ${index + 1} of ${side.body.n}`);
  return parts.join(", ");
}

export function filenameOf({ run, side, index }, extension = extensionOf(side.body.output_format)) {
  return `${fileStem(run.className)}-${side.body.seed}-${index}-N${side.body.draft_steps}.${extension}`;
}

/** The settings line of a run; N stands in it where there is one alone. */
export function settingsLine({ sides, model }) {
  const { body } = sides[0];
  const split = sides.length === 1 ? [nameSplit(body.draft_steps, model.num_scales)] : [];
  return [...split, describeSettings(body)].join(" · ");
}

/** The query that makes one side again, alone. */
export function queryOfSide(run, side) {
  return queryOf(side.body, run.defaults);
}

/** Seconds of each stage: those of the middle round, else of the request with its previews. */
export function secondsOf({ times, made }) {
  if (!times.length) return made.seconds;
  const middle = median(times.map(({ total }) => total));
  return times.toSorted((a, b) => Math.abs(a.total - middle) - Math.abs(b.total - middle))[0];
}
