// An honest comparison: settings take turns, several rounds, medians; faster is only what was faster in every round.

export const ROUNDS = 5;
export const ENOUGH_ROUNDS = 3;
const WORTH_SAYING = 1.1; // a smaller difference is not told

export function median(values) {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** The order of one round: every second one runs backwards, so that what changes slowly hits all alike. */
export function turnOrder(count, round) {
  const order = Array.from({ length: count }, (_, i) => i);
  return round % 2 ? order.reverse() : order;
}

/**
 * How `times` compare with `base`, seconds of the same rounds: {ratio, holds}. `holds` where each round says the same
 * and there are enough. ratio > 1: faster.
 */
export function compared(times, base) {
  const ratio = median(base) / median(times);
  const wins = times.filter((seconds, round) => seconds < base[round]).length;
  const isClear = times.length >= ENOUGH_ROUNDS && (ratio > 1 ? wins === times.length : wins === 0);
  return { ratio, holds: isClear && Math.max(ratio, 1 / ratio) >= WORTH_SAYING };
}

/** "1.4 × faster", or that no difference is sure; nothing where there are too few rounds to say. */
export function verdict(times, base) {
  if (times.length < ENOUGH_ROUNDS) return "";
  const { ratio, holds } = compared(times, base);
  if (!holds) return "no sure difference";
  return ratio > 1 ? `${factor(ratio)} faster` : `${factor(1 / ratio)} slower`;
}

/** "1.4 ×", rounded down: never more than was measured. */
function factor(ratio) {
  return `${(Math.floor(ratio * 10 + 1e-9) / 10).toFixed(1)} ×`;
}
