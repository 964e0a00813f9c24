// The gallery and the samples of classes, kept in this browser alone (IndexedDB), within bounds.

const MAX_RUNS = 60;
const MAX_BYTES = 64 * 2 ** 20; // of the gallery's image files

/** Opens the database; where a browser refuses (a private window), nothing is kept and nothing fails. */
const opened = new Promise((resolve) => {
  try {
    const request = indexedDB.open("tandem", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("runs", { keyPath: "id", autoIncrement: true });
      request.result.createObjectStore("samples");
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = request.onblocked = () => resolve(null);
  } catch {
    resolve(null);
  }
});

/** Keep a run; older ones that there is no room for go. Gives its id, null where nothing is kept. */
export async function keepRun(run) {
  const id = await perform("runs", "readwrite", (runs) => runs.put(run));
  const old = overflow(await keptRuns());
  if (old.length) await Promise.all(old.map((one) => forgetRun(one.id)));
  return id;
}

/** Newest first. */
export async function keptRuns() {
  return ((await perform("runs", "readonly", (runs) => runs.getAll())) ?? []).reverse();
}

export function forgetRun(id) {
  return perform("runs", "readwrite", (runs) => runs.delete(id));
}

export function forgetAllRuns() {
  return perform("runs", "readwrite", (runs) => runs.clear());
}

export function sampleOf(key) {
  return perform("samples", "readonly", (samples) => samples.get(key));
}

export function keepSample(key, blob) {
  return perform("samples", "readwrite", (samples) => samples.put(blob, key));
}

/** Runs, newest first, beyond what is kept. */
function overflow(runs) {
  let bytes = 0;
  return runs.filter((run, place) => {
    bytes += bytesOf(run);
    return place > 0 && (place >= MAX_RUNS || bytes > MAX_BYTES);
  });
}

function bytesOf(run) {
  const blobs = run.sides.flatMap((side) => side.images.flatMap((image) => image.scales));
  return blobs.reduce((sum, blob) => sum + (blob?.size ?? 0), 0);
}

async function perform(name, mode, act) {
  const database = await opened;
  if (!database) return null;
  return new Promise((resolve) => {
    const request = act(database.transaction(name, mode).objectStore(name));
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => resolve(null); // the disk is full: the page works on
  });
}
