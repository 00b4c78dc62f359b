// State of the page in the fragment of its address (after #), as base64 of JSON.

const ACCURACY = 1000; // grid points per unit, for the points of strokes

/** Round a coordinate to the grid, so that a link restores the exact points. */
export function onGrid(value) {
  return Math.round(value * ACCURACY) / ACCURACY;
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

export function unpackFloats(text) {
  return new Float32Array(fromBase64(text).buffer);
}

/** Return strokes with each point as the difference from the previous, to keep links short. */
export function packStrokes(strokes) {
  return strokes.map(({ pen, ink, points }) => {
    const steps = points.map((value) => Math.round(value * ACCURACY));
    return [pen, ink, steps.map((value, i) => (i < 2 ? value : value - steps[i - 2]))];
  });
}

export function unpackStrokes(packed) {
  return packed.map(([pen, ink, differences]) => {
    const steps = [];
    differences.forEach((value, i) => steps.push(i < 2 ? value : value + steps[i - 2]));
    return { pen, ink, points: steps.map((value) => value / ACCURACY) };
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
