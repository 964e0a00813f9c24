// 256 colours for many: median cut (Heckbert 1982) over a histogram of 15 bits, and error diffusion (Floyd, Steinberg 1976).

const SIZE = 256;

/** At most 256 colours [[r, g, b], ..] for RGBA pixels of all frames. */
export function paletteOf(frames) {
  let boxes = [{ cells: histogram(frames) }];
  boxes.forEach(measure);
  while (boxes.length < SIZE) {
    const widest = boxes.reduce((a, b) => (b.spread > a.spread ? b : a));
    if (widest.spread <= 0) break;
    boxes = [...boxes.filter((box) => box !== widest), ...halves(widest)];
  }
  return boxes.map(({ cells }) => {
    const weight = cells.reduce((sum, cell) => sum + cell.count, 0);
    return [0, 1, 2].map((part) => Math.round(cells.reduce((sum, cell) => sum + cell.mean[part] * cell.count, 0) / weight));
  });
}

/** Index of a colour for each pixel; what it is off by goes to its neighbours. */
export function indexed({ data, width, height }, palette) {
  const nearest = new Map();
  const indices = new Uint8Array(width * height);
  let [here, below] = [new Float32Array(3 * (width + 2)), new Float32Array(3 * (width + 2))];
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const at = 3 * (x + 1);
      const wanted = [0, 1, 2].map((part) => Math.min(255, Math.max(0, data[4 * (y * width + x) + part] + here[at + part])));
      const key = (wanted[0] >> 2 << 12) | (wanted[1] >> 2 << 6) | (wanted[2] >> 2);
      if (!nearest.has(key)) nearest.set(key, nearestOf(wanted, palette));
      const index = nearest.get(key);
      indices[y * width + x] = index;
      for (let part = 0; part < 3; part += 1) {
        const error = (wanted[part] - palette[index][part]) / 16;
        here[at + 3 + part] += 7 * error;
        below[at - 3 + part] += 3 * error;
        below[at + part] += 5 * error;
        below[at + 3 + part] += error;
      }
    }
    [here, below] = [below, here.fill(0)];
  }
  return indices;
}

function histogram(frames) {
  const counts = new Uint32Array(1 << 15);
  const sums = new Float64Array(3 << 15);
  for (const { data } of frames) {
    for (let at = 0; at < data.length; at += 4) {
      const cell = ((data[at] >> 3) << 10) | ((data[at + 1] >> 3) << 5) | (data[at + 2] >> 3);
      counts[cell] += 1;
      for (let part = 0; part < 3; part += 1) sums[3 * cell + part] += data[at + part];
    }
  }
  const cells = [];
  counts.forEach((count, cell) => {
    if (count) cells.push({ count, mean: [0, 1, 2].map((part) => sums[3 * cell + part] / count) });
  });
  return cells;
}

/** The longest side of a box, and how much it is worth to cut it there. */
function measure(box) {
  const weight = box.cells.reduce((sum, cell) => sum + cell.count, 0);
  const lengths = [0, 1, 2].map((part) => {
    const values = box.cells.map((cell) => cell.mean[part]);
    return Math.max(...values) - Math.min(...values);
  });
  box.axis = lengths.indexOf(Math.max(...lengths));
  box.spread = box.cells.length > 1 ? lengths[box.axis] * Math.sqrt(weight) : 0;
}

function halves({ cells, axis }) {
  const sorted = cells.toSorted((a, b) => a.mean[axis] - b.mean[axis]);
  const half = sorted.reduce((sum, cell) => sum + cell.count, 0) / 2;
  let [cut, seen] = [0, 0];
  while (cut < sorted.length - 1 && (cut === 0 || seen + sorted[cut].count <= half)) seen += sorted[cut++].count;
  const boxes = [{ cells: sorted.slice(0, cut) }, { cells: sorted.slice(cut) }];
  boxes.forEach(measure);
  return boxes;
}

function nearestOf(color, palette) {
  let [best, least] = [0, Infinity];
  palette.forEach((one, index) => {
    const distance = (color[0] - one[0]) ** 2 + (color[1] - one[1]) ** 2 + (color[2] - one[2]) ** 2;
    if (distance < least) [best, least] = [index, distance];
  });
  return best;
}
