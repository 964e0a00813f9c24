// Making the images of a run: each side's request as a stream, then, where sides are compared, rounds that are only timed.

import { ApiError, generateImages, imageBlob, serverSentEvents } from "./api.js";
import { patiently, showProgress } from "./bar.js";
import { turnOrder } from "./timing.js";
import { nameSplit } from "./words.js";

/** Fill `run` and show it in `view`. `rounds` are timed if there are several sides. `patient`: wait for a busy server. */
export async function make(run, view, { rounds, signal, patient = true }) {
  const ask = patient ? patiently : (request) => request();
  // One side after the other: at once each would slow the other down.
  for (const s of run.sides.keys()) await makeSide(run, s, view, ask, signal);
  if (run.sides.length > 1) await time(run, rounds, ask, signal);
}

async function makeSide(run, s, view, ask, signal) {
  const side = run.sides[s];
  const { body, images } = side;
  const { num_scales: numScales } = run.model;
  showProgress("Waiting for the server…");
  let began = performance.now();
  const response = await ask(() => {
    began = performance.now();
    return generateImages(body, signal);
  }, signal);
  for await (const event of serverSentEvents(response)) {
    const isLast = event.type === "image_generation.completed";
    const scale = isLast ? numScales : event.scale;
    const blob = imageBlob(event);
    images[event.image_index].scales[scale - 1] = blob;
    if (isLast) side.made = event.tandem;
    else side.firstMs ??= performance.now() - began;
    view.put(s, event.image_index, scale, blob);
    showProgress(progressText(run, side, event.image_index, scale), shareOf(run));
  }
  if (!images.every(({ scales }) => scales.at(-1))) throw new ApiError(0, "the connection ended before everything was made");
}

/** The settings take turns; the first requests, with their previews, were the warm-up. */
async function time(run, rounds, ask, signal) {
  for (let round = 0; round < rounds; round += 1) {
    for (const [done, s] of turnOrder(run.sides.length, round).entries()) {
      const { body, times } = run.sides[s];
      const share = (round + done / run.sides.length) / rounds;
      showProgress(`Timing, round ${round + 1} of ${rounds}: ${nameSplit(body.draft_steps, run.model.num_scales)}`, share);
      const { stream, preview_scales, ...plain } = body;
      const answer = await (await ask(() => generateImages(plain, signal), signal)).json();
      times.push(answer.tandem.seconds);
    }
  }
}

function shareOf({ sides }) {
  const all = sides.flatMap((side) => side.images.flatMap((image) => image.scales));
  return all.filter(Boolean).length / all.length;
}

/** "Refiner alone, scale 3 of 7, image 1 of 2" */
function progressText({ sides, model }, { body }, index, scale) {
  const parts = [`scale ${scale} of ${model.num_scales}`];
  if (sides.length > 1) parts.unshift(nameSplit(body.draft_steps, model.num_scales));
  if (body.n > 1) parts.push(`image ${index + 1} of ${body.n}`);
  const text = parts.join(", ");
  return text[0].toUpperCase() + text.slice(1);
}
