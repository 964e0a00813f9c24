// The controls of guidance: how strong it is, its course over the scales, and the refiner's own strength.

import { $ } from "./dom.js";

const USUAL_MAX = 10;
const OFF_AFTER = /^off-after:(\d+)$/;

export function listenToGuidance() {
  for (const id of ["cfg", "refiner-cfg"]) $(id).addEventListener("input", showStrengths);
  for (const id of ["cfg-schedule", "refiner-own"]) $(id).addEventListener("change", showChoices);
}

/** What the models were made for; `fine_tuned` by role. */
export function offerGuidance({ fine_tuned: tuned, num_scales: numScales }) {
  const free = Object.keys(tuned).filter((role) => tuned[role].guidance_free || typeof tuned[role].distilled_cfg === "number");
  const isWhole = ["drafter", "refiner"].every((role) => free.includes(role));
  $("guidance-free").hidden = !free.length;
  $("guidance-free").textContent = isWhole ? "needs none" : `${free[0] ?? ""} needs none`;
  $("guidance-note").hidden = !free.length;
  $("guidance-note").textContent = free.map((role) => noteOn(role, tuned[role])).join(" ");
  $("cfg-off").max = numScales;
  $("cfg-strengths").placeholder = Array.from({ length: numScales }, (_, i) => i).join(",");
}

export function showGuidance({ cfg, cfg_schedule: schedule, refiner_cfg: refiner }) {
  const off = OFF_AFTER.exec(schedule)?.[1];
  const isNamed = ["linear", "constant"].includes(schedule);
  $("cfg-schedule").value = isNamed ? schedule : off ? "off-after" : "own";
  if (off) $("cfg-off").value = off;
  if (!isNamed && !off) $("cfg-strengths").value = schedule;
  $("refiner-own").checked = refiner !== null;
  setStrength("cfg", cfg);
  setStrength("refiner-cfg", refiner ?? cfg);
  showChoices();
}

export function readGuidance() {
  const choice = $("cfg-schedule").value;
  const own = { "off-after": `off-after:${$("cfg-off").value}`, own: $("cfg-strengths").value.replaceAll(/\s/g, "") }[choice];
  if (choice === "own") return { cfg: null, cfg_schedule: own, refiner_cfg: null }; // they are those of both models
  return {
    cfg: $("cfg").valueAsNumber,
    cfg_schedule: own ?? choice,
    refiner_cfg: $("refiner-own").checked ? $("refiner-cfg").valueAsNumber : null,
  };
}

/** A link may ask for more than a slider usually offers. */
function setStrength(id, value) {
  $(id).max = value > USUAL_MAX ? Math.ceil(value) : USUAL_MAX;
  $(id).value = value;
}

function showChoices() {
  const choice = $("cfg-schedule").value;
  $("cfg-off").hidden = choice !== "off-after";
  $("cfg-strengths").hidden = choice !== "own";
  $("cfg-row").hidden = $("refiner-row").hidden = choice === "own";
  $("refiner-cfg").hidden = $("refiner-cfg-text").hidden = !$("refiner-own").checked;
  showStrengths();
}

function showStrengths() {
  for (const id of ["cfg", "refiner-cfg"]) $(`${id}-text`).textContent = $(id).valueAsNumber.toFixed(1);
}

/** "The drafter has learned guidance of 3 and needs none." */
function noteOn(role, { distilled_cfg: distilled }) {
  const learned = typeof distilled === "number" ? `has learned guidance of ${distilled}` : "was trained to do without";
  return `The ${role} ${learned}: at a strength above 0 it is guided twice.`;
}
