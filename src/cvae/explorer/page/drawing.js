// The drawing area: strokes of a pen, and their image, which the encoder takes.
import { roundToGrid } from "./link.js";

const SIDE = 280; // canvas pixels on the longer side
const SUBPIXELS = 8; // along each side of an image pixel, for anti-aliasing
const BOX = 20 / 28; // MNIST scales digits to fit 20 of 28 pixels
const MAX_SCALE = 4; // keeps a dot small
const STEP = 0.03; // of an arrow key, as a share of the longer side
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Drawing {
  /**
   * @param canvas the drawing area
   * @param description contents of model.json
   * @param onChange called after the user changes the strokes, or the paper under strokes
   */
  constructor(canvas, description, onChange) {
    const [channels, height, width] = description.image_shape;
    Object.assign(this, { canvas, description, onChange, channels, height, width });
    const longer = Math.max(height, width);
    canvas.width = Math.round((SIDE * width) / longer);
    canvas.height = Math.round((SIDE * height) / longer);
    this.aspect = [width / longer, height / longer]; // strokes are in units of the longer side
    this.strokes = []; // each {pen, ink, points: [x, y, x, y, ...]}
    this.pen = 0.085;
    this.ink = "#ffffff";
    this.paper = "#000000";
    this.background = null; // a canvas shown until the first stroke
    this.cursor = null; // of the keyboard, [x, y]
    this.pressedBy = null; // "keyboard" or a pointer's id while the pen is down
    canvas.addEventListener("pointerdown", (event) => this.#press(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, ({ pointerId }) => {
        if (this.pressedBy === pointerId) {
          this.pressedBy = null;
        }
      });
    }
    canvas.addEventListener("keydown", (event) => this.#handleKey(event));
    canvas.addEventListener("blur", () => this.#hideCursor());
    this.show();
  }

  /** Replace the strokes, for example by those of a link. */
  restore({ strokes, paper }) {
    this.#replace({ strokes, paper, background: null });
    this.show();
  }

  clear() {
    this.#replace({ strokes: [], background: null });
    this.#notifyChange();
  }

  undo() {
    this.#replace({ strokes: this.strokes.slice(0, -1), background: null });
    this.#notifyChange();
  }

  /** Show an image under the pen; the next stroke replaces it. */
  showImage(canvas) {
    this.#replace({ strokes: [], background: canvas });
    this.show();
  }

  setPaper(color) {
    this.paper = color;
    this.show();
    if (!this.isEmpty) {
      this.onChange();
    }
  }

  #replace(content) {
    Object.assign(this, content, { pressedBy: null });
  }

  get isEmpty() {
    return this.strokes.length === 0;
  }

  #notifyChange() {
    this.show();
    this.onChange();
  }

  #point(event) {
    const box = this.canvas.getBoundingClientRect();
    return this.#clamp([
      ((event.clientX - box.left) / box.width) * this.aspect[0],
      ((event.clientY - box.top) / box.height) * this.aspect[1],
    ]);
  }

  /** Return the nearest point of the drawing area. */
  #clamp(point) {
    return point.map((value, i) => roundToGrid(Math.min(this.aspect[i], Math.max(0, value))));
  }

  #startStroke(point) {
    this.background = null;
    this.strokes.push({ pen: this.pen, ink: this.ink, points: [...point] });
    this.#notifyChange();
  }

  #extendStroke(point) {
    this.strokes.at(-1).points.push(...point);
  }

  #press(event) {
    this.#hideCursor();
    if (event.button !== 0 || this.pressedBy !== null) {
      return; // another button, or a second finger
    }
    this.canvas.setPointerCapture?.(event.pointerId);
    this.pressedBy = event.pointerId;
    this.#startStroke(this.#point(event));
  }

  #move(event) {
    if (this.pressedBy !== event.pointerId) {
      return;
    }
    const events = event.getCoalescedEvents?.() ?? [];
    for (const one of events.length ? events : [event]) {
      this.#extendStroke(this.#point(one));
    }
    this.#notifyChange();
  }

  #hideCursor() {
    if (this.cursor) {
      Object.assign(this, { cursor: null, pressedBy: null });
      this.show();
    }
  }

  #handleKey(event) {
    if (event.key === "Delete" || event.key === "Backspace") {
      this.clear();
    } else if (event.key === " " && this.cursor) {
      this.pressedBy = this.pressedBy === null ? "keyboard" : null;
      if (this.pressedBy) {
        this.#startStroke(this.cursor);
      }
    } else if (event.key in KEYS) {
      const [dx, dy] = KEYS[event.key];
      const [x, y] = this.cursor ?? this.aspect.map((size) => size / 2);
      this.cursor = this.#clamp([x + dx * STEP, y + dy * STEP]);
      if (this.pressedBy === "keyboard") {
        this.#extendStroke(this.cursor);
        this.#notifyChange();
      }
    } else {
      return;
    }
    event.preventDefault();
    this.show();
  }

  /** Redraw the canvas. */
  show() {
    const { canvas } = this;
    const context = canvas.getContext("2d");
    const scale = canvas.width / this.aspect[0];
    context.fillStyle = this.paper;
    context.fillRect(0, 0, canvas.width, canvas.height);
    if (this.background && this.isEmpty) {
      context.imageSmoothingEnabled = false;
      context.drawImage(this.background, 0, 0, canvas.width, canvas.height);
    }
    drawStrokes(context, this.strokes, { scale, x: 0, y: 0 });
    if (this.cursor) {
      context.strokeStyle = this.pressedBy ? "#ff8c00" : "#4aa3ff";
      context.lineWidth = 2;
      context.beginPath();
      context.arc(this.cursor[0] * scale, this.cursor[1] * scale, 7, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  /** Return the input of the encoder, in [0, 1]; binarized for a model of binary pixels. */
  toImage() {
    const image = this.#render();
    const { thresholds, pixels } = this.description;
    if (pixels === "binary") {
      return image.map((grey, i) => (grey > thresholds[i] ? 1 : 0));
    }
    return image;
  }

  /**
   * Return the anti-aliased image. For a model of digits, the drawing is placed as in MNIST: scaled
   * to fit 20 of 28 pixels, then moved so that its center of mass is the center of the image.
   */
  #render() {
    const { height, width } = this;
    const longer = Math.max(height, width);
    const page = document.createElement("canvas");
    [page.width, page.height] = [width * SUBPIXELS, height * SUBPIXELS];
    const context = page.getContext("2d", { willReadFrequently: true });
    const draw = (transform) => {
      context.fillStyle = this.paper;
      context.fillRect(0, 0, page.width, page.height);
      drawStrokes(context, this.strokes, transform);
      return context.getImageData(0, 0, page.width, page.height).data;
    };
    if (!this.description.centered || this.isEmpty) {
      return average(draw({ scale: longer * SUBPIXELS, x: 0, y: 0 }), this.channels, height, width);
    }
    const transform = fitBox(this.strokes, page, longer * SUBPIXELS);
    const mass = centerOfMass(draw(transform), page);
    transform.x += page.width / 2 - mass.x;
    transform.y += page.height / 2 - mass.y;
    return average(draw(transform), this.channels, height, width);
  }
}

function drawStrokes(context, strokes, { scale, x, y }) {
  context.lineCap = context.lineJoin = "round";
  for (const { pen, ink, points } of strokes) {
    context.strokeStyle = ink;
    context.lineWidth = pen * scale;
    context.beginPath();
    context.moveTo(points[0] * scale + x + 0.01, points[1] * scale + y); // a line of length 0 is not drawn
    for (let i = 0; i < points.length; i += 2) {
      context.lineTo(points[i] * scale + x, points[i + 1] * scale + y);
    }
    context.stroke();
  }
}

/** Return the scale and shift that fit the strokes into the box of MNIST, in the image's center. */
function fitBox(strokes, page, longer) {
  let [left, top, right, bottom] = [Infinity, Infinity, -Infinity, -Infinity];
  for (const { pen, points } of strokes) {
    for (let i = 0; i < points.length; i += 2) {
      left = Math.min(left, points[i] - pen / 2);
      right = Math.max(right, points[i] + pen / 2);
      top = Math.min(top, points[i + 1] - pen / 2);
      bottom = Math.max(bottom, points[i + 1] + pen / 2);
    }
  }
  const scale = Math.min(MAX_SCALE, BOX / Math.max(right - left, bottom - top)) * longer;
  const x = page.width / 2 - (scale * (left + right)) / 2;
  const y = page.height / 2 - (scale * (top + bottom)) / 2;
  return { scale, x, y };
}

/** Return the center of mass of the ink. The first pixel has the color of the paper. */
function centerOfMass(data, { width, height }) {
  let [mass, x, y] = [0, 0, 0];
  for (let i = 0; i < width * height; i++) {
    let weight = 0;
    for (let c = 0; c < 3; c++) {
      weight += Math.abs(data[4 * i + c] - data[c]);
    }
    mass += weight;
    x += weight * ((i % width) + 0.5);
    y += weight * (Math.floor(i / width) + 0.5);
  }
  return mass ? { x: x / mass, y: y / mass } : { x: width / 2, y: height / 2 };
}

/** Return the mean over the subpixels of each pixel, in steps of 1/255. */
function average(data, channels, height, width) {
  const image = new Float32Array(channels * height * width);
  for (let row = 0; row < height * SUBPIXELS; row++) {
    for (let column = 0; column < width * SUBPIXELS; column++) {
      const pixel = Math.floor(row / SUBPIXELS) * width + Math.floor(column / SUBPIXELS);
      for (let c = 0; c < channels; c++) {
        image[c * height * width + pixel] += data[4 * (row * width * SUBPIXELS + column) + c];
      }
    }
  }
  return image.map((sum) => Math.round(sum / SUBPIXELS ** 2) / 255);
}
