// Words and figures: how splits, times and settings are said everywhere on the page.

/** "drafter makes scales 1–5, refiner 6–7" */
export function describeSplit(draftSteps, numScales) {
  if (draftSteps === numScales) return "drafter alone";
  if (draftSteps === 0) return "refiner alone";
  const scales = draftSteps === 1 ? "scale" : "scales";
  return `drafter makes ${scales} ${range(1, draftSteps)}, refiner ${range(draftSteps + 1, numScales)}`;
}

/** "N = 5", or which model is alone. */
export function nameSplit(draftSteps, numScales) {
  const isMixed = draftSteps > 0 && draftSteps < numScales;
  return isMixed ? `N = ${draftSteps}` : describeSplit(draftSteps, numScales);
}

export function makerOf(scale, draftSteps) {
  return scale <= draftSteps ? "drafter" : "refiner";
}

/** "41 ms", "1.24 s" */
export function duration(seconds) {
  if (seconds >= 0.9995) return `${seconds.toFixed(2)} s`;
  const ms = seconds * 1000;
  return `${ms < 9.95 ? ms.toFixed(1) : Math.round(ms)} ms`;
}

/** "1 image", "3 images" */
export function counted(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

/** A name on one line, whatever was put into it. */
export function oneLine(name) {
  return name.replace(/\s+/g, " ").trim();
}

/** What differs from one request to the next: "seed 8 · cfg 3 · top-p 0.9" */
export function describeSettings(body) {
  const facts = [`seed ${body.seed}`, describeGuidance(body)];
  if (body.top_p) facts.push(`top-p ${body.top_p}`);
  if (body.top_k) facts.push(`top-k ${body.top_k}`);
  if (body.deterministic) facts.push("deterministic");
  return facts.join(" · ");
}

/** "cfg 3", "cfg 3, constant, refiner 0", "cfg 0,1,2" */
export function describeGuidance({ cfg, cfg_schedule: schedule = "linear", refiner_cfg: refiner = null }) {
  const strengths = schedule.includes(",") ? `cfg ${schedule}` : `cfg ${cfg}`;
  const course = schedule === "linear" || schedule.includes(",") ? "" : `, ${schedule}`;
  return strengths + course + (refiner === null ? "" : `, refiner ${refiner}`);
}

/** A sentence, without the name of the field: the label says that already. */
export function inWords({ message, param }) {
  const text = param && message.startsWith(`${param}: `) ? message.slice(param.length + 2) : message;
  const stop = /[.?!]$/.test(text) ? "" : ".";
  return text[0].toUpperCase() + text.slice(1) + stop;
}

/** A name for a file: letters, digits and hyphens. */
export function fileStem(text) {
  return oneLine(text).slice(0, 60).replaceAll(/[^\w-]+/g, "_");
}

export function extensionOf(format) {
  return format === "jpeg" ? "jpg" : format;
}

function range(first, last) {
  return first === last ? `${first}` : `${first}–${last}`;
}
