// Plane of two directions: a grid of decoded images, and a ring to drag at the position of z.
import { toCanvas } from "./pixels.js";

const SIDE = 308; // canvas pixels
const TILES = 9; // on each side
const STEP = 0.02; // of an arrow key, as a share of a side
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

export class Plane {
  /**
   * @param canvas the canvas of the plane
   * @param onMove called with the coordinates that the ring is dragged to
   */
  constructor(canvas, onMove) {
    Object.assign(this, { canvas, onMove, position: [0, 0], axes: null });
    canvas.width = canvas.height = SIDE;
    this.tiles = document.createElement("canvas"); // the background
    this.tiles.width = this.tiles.height = SIDE;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture?.(event.pointerId);
      this.#drag(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.buttons & 1) {
        this.#drag(event);
      }
    });
    canvas.addEventListener("keydown", (event) => this.#handleKey(event));
  }

  #drag(event) {
    const box = this.canvas.getBoundingClientRect();
    const relative = [
      (event.clientX - box.left) / box.width,
      1 - (event.clientY - box.top) / box.height,
    ];
    this.#move(relative);
  }

  #handleKey(event) {
    if (event.key in KEYS) {
      this.#move(this.#relativePosition().map((value, i) => value + STEP * KEYS[event.key][i]));
      event.preventDefault();
    }
  }

  #move(relative) {
    const inside = relative.map((value) => Math.min(1, Math.max(0, value)));
    this.onMove(inside.map((value, i) => this.axes[i].low + value * this.#length(i)));
  }

  #length(i) {
    return this.axes[i].high - this.axes[i].low;
  }

  #relativePosition() {
    return this.position.map((value, i) => (value - this.axes[i].low) / this.#length(i));
  }

  /** Return the coordinates of the centers of the tiles, row by row from the top left. */
  centers() {
    const at = (i, index) => this.axes[i].low + ((index + 0.5) / TILES) * this.#length(i);
    return Array.from({ length: TILES ** 2 }, (_, index) => [
      at(0, index % TILES),
      at(1, TILES - 1 - Math.floor(index / TILES)),
    ]);
  }

  /** Show the images that are decoded at the centers. */
  showTiles(images, shape) {
    const context = this.tiles.getContext("2d");
    const size = SIDE / TILES;
    images.forEach((image, i) => {
      const [left, top] = [(i % TILES) * size, Math.floor(i / TILES) * size];
      context.drawImage(toCanvas(image, shape), left, top, size, size);
    });
    this.show();
  }

  /** Draw the tiles and the ring. */
  show() {
    const context = this.canvas.getContext("2d");
    context.drawImage(this.tiles, 0, 0);
    const [x, y] = this.#relativePosition();
    context.beginPath();
    context.arc(x * SIDE, (1 - y) * SIDE, 11, 0, 2 * Math.PI);
    context.lineWidth = 5;
    context.strokeStyle = "#000000";
    context.stroke();
    context.lineWidth = 3;
    context.strokeStyle = "#ffb000";
    context.stroke();
  }
}
