// Arithmetic on points z of the latent space and on directions, which are unit vectors.

export function dot(a, b) {
  return a.reduce((sum, value, i) => sum + value * b[i], 0);
}

/** Return a + scale * b. */
export function add(a, b, scale = 1) {
  return Float32Array.from(a, (value, i) => value + scale * b[i]);
}

/**
 * Return a point on the path from a to b, spherical in direction and linear in length, as in
 * generate.py morph=. On a straight line the middle would be shorter than a sample of N(0, I).
 * @param share position on the path, from 0 at a to 1 at b
 */
export function interpolate(a, b, share) {
  const [from, to] = [Math.hypot(...a), Math.hypot(...b)];
  const angle = Math.acos(Math.min(1, Math.max(-1, dot(a, b) / Math.max(from * to, 1e-12))));
  if (from * to === 0 || Math.sin(angle) < 1e-3) {
    return Float32Array.from(a, (value, i) => (1 - share) * value + share * b[i]);
  }
  const length = ((1 - share) * from + share * to) / Math.sin(angle);
  const weights = [
    (length * Math.sin((1 - share) * angle)) / from,
    (length * Math.sin(share * angle)) / to,
  ];
  return Float32Array.from(a, (value, i) => weights[0] * value + weights[1] * b[i]);
}

/** Return z moved along a direction to a coordinate. */
export function moveTo(z, direction, coordinate) {
  return add(z, direction, coordinate - dot(z, direction));
}

/** Return z moved in the plane of two directions to a pair of coordinates. */
export function moveInPlane(z, across, up, [x, y]) {
  const cosine = dot(across, up);
  const determinant = 1 - cosine ** 2;
  const [dx, dy] = [x - dot(z, across), y - dot(z, up)];
  if (determinant < 1e-3) {
    return add(z, across, dx); // almost the same direction
  }
  const moved = add(z, across, (dx - cosine * dy) / determinant);
  return add(moved, up, (dy - cosine * dx) / determinant);
}

/** Return samples of N(0, I). */
export function standardNormal(size) {
  return Float32Array.from({ length: size }, () => {
    const radius = Math.sqrt(-2 * Math.log(1 - Math.random()));
    return radius * Math.cos(2 * Math.PI * Math.random());
  });
}

/** Return the named directions of model.json, and one direction for each dimension of z. */
export function allDirections({ directions, dimensions, latent_dim: size }) {
  const named = directions.map(({ name, vector, low, high, share }) => ({
    text: share == null ? name : `${name} (${Math.round(100 * share)} %)`,
    vector: Float32Array.from(vector),
    low,
    high,
  }));
  const single = dimensions.map(({ spread, low, high }, i) => {
    const vector = new Float32Array(size);
    vector[i] = 1;
    return { text: `z${i}, s.d. ${spread.toFixed(2)}`, vector, low, high, spread };
  });
  single.sort((a, b) => b.spread - a.spread); // dimensions that vary most come first
  return { named, single, all: [...named, ...single] };
}
