// State of the page in the fragment of its address (after #), as base64 of JSON.

const GRID_POINTS = 1000; // grid points per unit, for the points of strokes

/** Round a coordinate to the grid, so that a link restores the exact points. */
export function roundToGrid(value) {
  return Math.round(value * GRID_POINTS) / GRID_POINTS;
}

function toBase64(bytes) {
  const text = Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function fromBase64(text) {
  const bytes = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  return Uint8Array.from(bytes, (character) => character.charCodeAt(0));
}

/** Return the base64 of numbers as float32. */
export function packFloats(values) {
  return toBase64(new Uint8Array(Float32Array.from(values).buffer));
}

function unpackFloats(text) {
  return new Float32Array(fromBase64(text).buffer);
}

/** Return strokes with each point as the difference from the previous, to keep links short. */
export function packStrokes(strokes) {
  return strokes.map(({ pen, ink, points }) => {
    const steps = points.map((value) => Math.round(value * GRID_POINTS));
    return [pen, ink, steps.map((value, i) => (i < 2 ? value : value - steps[i - 2]))];
  });
}

function unpackStrokes(packed) {
  return packed.map(([pen, ink, differences]) => {
    const steps = [];
    differences.forEach((value, i) => steps.push(i < 2 ? value : value + steps[i - 2]));
    return { pen, ink, points: steps.map((value) => value / GRID_POINTS) };
  });
}

/** Return the fragment for a state of plain data. */
export function encodeState(state) {
  return toBase64(new TextEncoder().encode(JSON.stringify(state)));
}

/** Return the state in a fragment; null if it is not valid. */
export function decodeState(text) {
  try {
    return text ? JSON.parse(new TextDecoder().decode(fromBase64(text))) : null;
  } catch {
    return null;
  }
}

/** Return the state of a snapshot, with latents and strokes unpacked; null if it is invalid. */
export function checkSnapshot(snapshot, { model, examples, conditions, directions }) {
  const isIn = (value, low, high) => Number.isFinite(value) && value >= low && value <= high;
  const isIndex = (value, count) => Number.isInteger(value) && isIn(value, 0, count - 1);
  const size = model.description.latent_dim;
  const isLatent = (z) => z.length === size && z.every((value) => isIn(value, -100, 100));
  const isColor = (text) => /^#[0-9a-f]{6}$/.test(text);
  const areValues = (values) =>
    model.parts.every(({ name, kind, size: count }) =>
      kind === "categorical" ? isIndex(values[name], count) : Number.isFinite(values[name]),
    );
  try {
    const latent = (name) => snapshot[name] && unpackFloats(snapshot[name]);
    const { example, label, given, wanted, chosen, temperature, axes, dimension } = snapshot;
    const [z, noise, a, b] = ["z", "noise", "a", "b"].map(latent);
    const strokes = unpackStrokes(snapshot.strokes);
    const fits =
      snapshot.model === model.description.digest &&
      isLatent(z) &&
      [noise, a, b].every((vector) => vector === null || isLatent(vector)) &&
      strokes.every(({ pen, ink, points }) => isIn(pen, 0, 1) && isColor(ink) && points.length > 1) &&
      strokes.every(({ points }) => points.every((value) => isIn(value, 0, 1))) &&
      isColor(snapshot.paper) &&
      (example === null || isIndex(example, examples.length)) &&
      (label === null || (conditions.isLabelled && isIndex(label, conditions.tileValues.length))) &&
      areValues(given) &&
      areValues(wanted) &&
      isIndex(chosen, conditions.tileValues.length) &&
      isIn(temperature, 0, 10) &&
      axes.length === 2 &&
      axes.every((axis) => isIndex(axis, directions.all.length)) &&
      isIndex(dimension, directions.single.length) &&
      isIn(snapshot.share, 0, 1);
    const { paper, share } = snapshot;
    const settings = { label, temperature, axes, dimension, share, ends: { a, b } };
    return fits ? { example, strokes, paper, given, wanted, z, noise, chosen, ...settings } : null;
  } catch {
    return null; // a part is missing, or has another type
  }
}
