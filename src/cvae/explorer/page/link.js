// The state of the page in the part of its address after #, as base64 of JSON.

const ACCURACY = 1000; // steps to a unit, for the points of strokes

/** Round a coordinate, so that a link restores exactly the points that were drawn. */
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

/** Return numbers as text that restores each float32 exactly. */
export function packFloats(values) {
  return toBase64(new Uint8Array(Float32Array.from(values).buffer));
}

export function unpackFloats(text) {
  return new Float32Array(fromBase64(text).buffer);
}

/** Return strokes with points as differences of integers, which are short. */
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

/** Return the text after # for a state of plain data. */
export function encodeState(state) {
  return toBase64(new TextEncoder().encode(JSON.stringify(state)));
}

/** Return the state of a text after #; null if it holds none. */
export function decodeState(text) {
  try {
    return text ? JSON.parse(new TextDecoder().decode(fromBase64(text))) : null;
  } catch {
    return null;
  }
}
