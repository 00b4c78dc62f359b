// Drawing of images on canvases. An image is a Float32Array of channels x height x width in [0, 1].

/** Draw an image on a canvas, one canvas pixel for each image pixel. */
export function paint(canvas, image, [channels, height, width]) {
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  canvas.getContext("2d").putImageData(toImageData(image, [channels, height, width]), 0, 0);
}

/** Return an image as ImageData; a grey image has three equal channels. */
function toImageData(image, [channels, height, width]) {
  const data = new ImageData(width, height);
  const size = height * width;
  for (let i = 0; i < size; i++) {
    for (let c = 0; c < 3; c++) {
      data.data[4 * i + c] = Math.round(255 * image[channels === 1 ? i : c * size + i]);
    }
    data.data[4 * i + 3] = 255;
  }
  return data;
}

/** Return an image as a canvas of its size, which drawImage can scale. */
export function toCanvas(image, shape) {
  const canvas = document.createElement("canvas");
  paint(canvas, image, shape);
  return canvas;
}

/** Return an image, stored as base64 of bytes, as numbers in [0, 1]. */
export function decodePixels(text) {
  const bytes = atob(text);
  return Float32Array.from(bytes, (character) => character.charCodeAt(0) / 255);
}

/** Return the color of an image's first pixel, and the color that differs most from it. */
export function colorsOf(image, [, height, width]) {
  const size = height * width;
  const at = (i) => [0, 1, 2].map((c) => image[c * size + i]);
  const first = at(0);
  const difference = (i) => at(i).reduce((sum, value, c) => sum + (value - first[c]) ** 2, 0);
  const positions = Array.from({ length: size }, (_, i) => i);
  const farthest = positions.reduce((a, b) => (difference(b) > difference(a) ? b : a));
  const toText = (color) =>
    `#${color.map((value) => Math.round(255 * value).toString(16).padStart(2, "0")).join("")}`;
  return { paper: toText(first), ink: toText(at(farthest)) };
}

/** Download the encoder's input and the labelled tiles as one PNG. */
export function savePicture(input, tiles, shape, name) {
  const scale = Math.max(1, Math.round(112 / shape[1]));
  const [width, height] = [shape[2] * scale, shape[1] * scale];
  const columns = Math.min(5, tiles.length);
  const first = input ? 1 : 0; // column of the first tile
  const rows = Math.ceil(tiles.length / columns);
  const [gap, captionHeight] = [8, 24];
  const page = document.createElement("canvas");
  page.width = gap + (width + gap) * (columns + first) + gap;
  page.height = gap + (height + captionHeight) * rows + gap;
  const context = page.getContext("2d");
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, page.width, page.height);
  context.imageSmoothingEnabled = false;
  context.font = "16px sans-serif";
  context.textAlign = "center";
  context.fillStyle = "#000000";
  const draw = (image, caption, left, top) => {
    context.drawImage(toCanvas(image, shape), left, top, width, height);
    context.fillText(caption, left + width / 2, top + height + 18, width);
  };
  if (input) {
    draw(input, "input", gap, gap);
  }
  tiles.forEach(({ image, text }, i) => {
    const column = first + (i % columns);
    const row = Math.floor(i / columns);
    draw(image, text, 2 * gap + column * (width + gap), gap + row * (height + captionHeight));
  });
  page.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${name}.png`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
}
