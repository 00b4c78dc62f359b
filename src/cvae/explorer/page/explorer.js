// State of the page, and the updates after each change of it. The view shows the state.
import { Conditions } from "./conditions.js";
import { allDirections, interpolate, moveInPlane, moveTo } from "./latent.js";
import { checkSnapshot, packFloats, packStrokes } from "./link.js";
import { decodePixels } from "./pixels.js";

const PLANE_DELAY = 120; // ms without a change before the plane is decoded again

export class Explorer {
  constructor(model) {
    const { description } = model;
    this.model = model;
    this.conditions = new Conditions(model);
    this.directions = allDirections(description);
    this.examples = description.examples.map((example) => ({
      ...example,
      image: decodePixels(example.pixels),
    }));
    this.example = null; // position of the chosen example; null for a drawing
    this.x = null; // input of the encoder
    this.label = null; // of the drawing, chosen by the user; null for the guess
    this.bounds = null; // one for each label, in nats
    this.z = new Float32Array(description.latent_dim);
    this.encoded = this.z; // z of the drawing or example, before changes
    this.noise = null; // sample of N(0, I): z is temperature * noise; null if z is not sampled
    this.temperature = 1;
    this.chosenTile = 0; // tile whose label the plane shows
    this.images = []; // of the tiles
    this.ends = { a: null, b: null }; // styles to morph between
    this.share = 0; // of the way from a to b
    this.axes = [0, Math.min(1, this.directions.all.length - 1)]; // positions in directions.all
    this.dimension = 0; // position in directions.single
    this.pending = { encode: false, decode: false, plane: false };
    this.running = null;
    this.queue = Promise.resolve(); // a network runs one call at a time
  }

  // ---- updates

  /** Schedule an update. All changes before the next frame share one update. */
  update(...steps) {
    steps.forEach((step) => (this.pending[step] = true));
    this.running ??= this.#run();
    return this.running;
  }

  async #run() {
    try {
      while (this.pending.encode || this.pending.decode || this.pending.plane) {
        await new Promise(requestAnimationFrame);
        await this.runExclusive(() => this.#step());
      }
    } finally {
      this.running = null;
    }
  }

  /** Call a function when the networks are free. */
  runExclusive(call) {
    const result = this.queue.then(call);
    this.queue = result.catch(() => {});
    return result;
  }

  async #step() {
    const startTime = performance.now();
    if (this.pending.encode) {
      this.pending.encode = false;
      await this.#encode();
    }
    if (this.pending.decode) {
      this.pending.decode = false;
      const ys = this.conditions.tileConditions();
      const latents = this.conditions.tileValues.map(() => this.z);
      this.images = await this.model.decode(latents, ys);
      this.view.showStyle();
      this.decodedAt = performance.now();
      this.milliseconds = this.decodedAt - startTime;
    } else if (this.pending.plane && performance.now() - this.decodedAt > PLANE_DELAY) {
      this.pending.plane = false;
      const points = this.view.plane.centers().map((at) => this.#pointInPlane(at));
      this.view.showPlane(await this.#decodeChosen(points));
    }
  }

  /** Encode the drawing or example with its label: the chosen one, or the guess. */
  async #encode() {
    const { model, conditions } = this;
    const isDrawn = this.example === null;
    const x = isDrawn ? this.view.drawing.toImage() : this.examples[this.example].image;
    this.x = x;
    let [latents, bounds] = [null, null];
    if (conditions.canGuess) {
      const ys = conditions.labelConditions();
      const codes = await model.encode(x, ys);
      [latents, bounds] = [codes.latents, await model.bounds(x, ys, codes)];
    } else {
      if (conditions.isLabelled) {
        conditions.encoderValues[conditions.tilePart.name] = this.label ?? 0;
      }
      ({ latents } = await model.encode(x, conditions.drawingConditions()));
    }
    if (this.x !== x) {
      return; // the drawing was cleared meanwhile
    }
    this.bounds = bounds;
    if (conditions.isLabelled) {
      const label = this.label ?? this.guess ?? 0;
      conditions.encoderValues[conditions.tilePart.name] = this.chosenTile = label;
    }
    this.encoded = latents[conditions.canGuess ? this.chosenTile : 0];
    this.z = this.encoded;
    this.noise = null;
    this.view.showInput();
  }

  /** Position of the label with the largest bound; null before an image is encoded. */
  get guess() {
    return this.bounds && this.bounds.indexOf(Math.max(...this.bounds));
  }

  /** Decode latents with the condition of the chosen tile. */
  #decodeChosen(latents) {
    const y = this.conditions.tileConditions()[this.chosenTile];
    return this.model.decode(latents, latents.map(() => y));
  }

  #pointInPlane(at) {
    const [across, up] = this.axes.map((i) => this.directions.all[i].vector);
    return moveInPlane(this.z, across, up, at);
  }

  // ---- changes by the user

  onDrawingChange() {
    if (this.example !== null) {
      this.label = null;
      this.conditions.reset(); // the conditions of the example do not apply to the drawing
    }
    this.example = null;
    if (this.view.drawing.isEmpty) {
      this.#forgetImage();
    } else {
      this.update("encode", "decode", "plane");
    }
  }

  /** Discard the image, but keep z. */
  #forgetImage() {
    Object.assign(this, { x: null, bounds: null, label: null });
    this.pending.encode = false;
    this.view.showInput();
    this.update("decode"); // updates the link
  }

  chooseExample(index) {
    const { conditions } = this;
    conditions.setFromVector(this.examples[index].y);
    this.example = index;
    this.label = conditions.isLabelled ? conditions.encoderValues[conditions.tilePart.name] : null;
    this.view.showExample();
    return this.update("encode", "decode", "plane");
  }

  /** Choose the label of the drawing; null for the guess. */
  chooseLabel(label) {
    this.label = label;
    this.encodeAgain();
  }

  encodeAgain() {
    if (this.x) {
      this.update("encode", "decode", "plane");
    }
  }

  chooseTile(index) {
    this.chosenTile = index;
    this.update("decode", "plane");
    return this.showEnds();
  }

  #setStyle(z, ...steps) {
    this.z = z;
    this.noise = null;
    this.update("decode", ...steps);
  }

  moveAlong({ vector }, coordinate) {
    this.#setStyle(moveTo(this.z, vector, coordinate), "plane");
  }

  moveInPlane(at) {
    this.#setStyle(this.#pointInPlane(at));
  }

  restoreImage() {
    if (this.x) {
      this.#setStyle(this.encoded, "plane");
    }
  }

  /** Set z to noise from N(0, I) times the temperature. */
  sample(noise) {
    this.noise = noise;
    this.z = noise.map((value) => value * this.temperature);
    this.update("decode", "plane");
  }

  setTemperature(temperature) {
    this.temperature = temperature;
    if (this.noise) {
      this.sample(this.noise);
    }
  }

  /** Store z as one end of the morph. */
  storeEnd(end) {
    this.ends[end] = this.z;
    this.update("decode");
    return this.showEnds();
  }

  async showEnds() {
    for (const [end, z] of Object.entries(this.ends)) {
      if (z) {
        const [image] = await this.runExclusive(() => this.#decodeChosen([z]));
        this.view.showEnd(end, image);
      }
    }
  }

  morph(share) {
    this.share = share;
    this.#setStyle(interpolate(this.ends.a, this.ends.b, share), "plane");
  }

  // ---- links

  /** Return the state that a link restores, as plain data. */
  snapshot() {
    const pack = (z) => z && packFloats(z);
    const { encoderValues: given, decoderValues: wanted } = this.conditions;
    const { strokes, paper } = this.view.drawing;
    const { example, label, temperature, axes, dimension, share } = this;
    return {
      model: this.model.description.digest,
      z: pack(this.z),
      noise: pack(this.noise),
      a: pack(this.ends.a),
      b: pack(this.ends.b),
      strokes: packStrokes(strokes),
      paper,
      given,
      wanted,
      chosen: this.chosenTile,
      ...{ example, label, temperature, axes, dimension, share },
    };
  }

  /** Restore a snapshot; return false, without a change, if it does not fit this model. */
  async restore(snapshot) {
    const { conditions } = this;
    const state = checkSnapshot(snapshot, this);
    if (!state) {
      return false;
    }
    const { example, strokes, paper, given, wanted, z, noise, chosen, ...settings } = state;
    if (example === null) {
      this.example = null;
      this.view.drawing.restore({ strokes, paper });
    } else {
      this.chooseExample(example);
    }
    Object.assign(this, settings);
    Object.assign(conditions.encoderValues, given);
    if (example !== null || strokes.length) {
      await this.update("encode");
    } else {
      this.#forgetImage();
    }
    Object.assign(conditions.decoderValues, wanted);
    Object.assign(this, { z, noise, chosenTile: chosen });
    this.view.showSettings();
    await this.update("decode", "plane");
    await this.showEnds();
    return true;
  }

  /** Return the content of the page as plain numbers. */
  state() {
    const { tilePart, encoderValues } = this.conditions;
    return {
      latent: Array.from(this.z),
      pixels: this.x && Array.from(this.x),
      guess: this.guess,
      bounds: this.bounds,
      label: tilePart ? encoderValues[tilePart.name] : null,
      images: this.images.map((image) => Array.from(image)),
      milliseconds: this.milliseconds ?? null,
    };
  }
}
