// View of the page: builds the controls for a model, and shows the explorer's state.
import {
  addExamples,
  addSlider,
  addTiles,
  fillSelect,
  enableFineSteps,
  markTile,
  setSlider,
  showBars,
} from "./controls.js";
import { Drawing } from "./drawing.js";
import { dot, standardNormal } from "./latent.js";
import { decodeState, encodeState } from "./link.js";
import { colorsOf, paint, savePicture, toCanvas } from "./pixels.js";
import { Plane } from "./plane.js";
import { makeTexts } from "./texts.js";

const LINK_DELAY = 300; // ms before the address shows a change
const MESSAGE_TIME = 8000; // ms

const $ = (id) => document.getElementById(id);
const on = (id, event, action) => $(id).addEventListener(event, action);

export class View {
  constructor(explorer) {
    this.explorer = explorer;
    explorer.view = this;
    const { description } = explorer.model;
    this.unit = description.has_prior ? " s.d." : "";
    this.#showTexts(makeTexts(description, explorer.conditions));
    this.#connectDrawing(description);
    this.#connectConditions();
    this.#connectStyle();
    this.#connectSamples(description);
    this.#connectButtons(description);
    this.showSettings();
  }

  // ---- showing the state

  /** Show a message for a while. */
  showMessage(text) {
    $("message").textContent = text;
    clearTimeout(this.messageTimer);
    this.messageTimer = setTimeout(() => ($("message").textContent = ""), MESSAGE_TIME);
  }

  /** Show the encoder's input and the guess. */
  showInput() {
    const { explorer } = this;
    const { conditions, bounds, guess } = explorer;
    const input = explorer.x ?? new Float32Array(explorer.model.shape.reduce((a, b) => a * b));
    paint($("input"), input, explorer.model.shape);
    markTile($("examples"), explorer.example);
    markTile($("tiles"), explorer.chosenTile);
    $("reset").disabled = !explorer.x;
    this.#showLabel();
    if (!conditions.canGuess) {
      return;
    }
    if (!bounds) {
      $("guess").replaceChildren();
      $("guess-text").textContent = "Draw an image to see the guess.";
      $("label").options[0].textContent = "as guessed";
      return;
    }
    showBars($("guess"), conditions.tileTexts, bounds);
    const others = bounds.map((bound, i) => (i === guess ? -Infinity : bound));
    const second = others.indexOf(Math.max(...others));
    const lead = `${(bounds[guess] - bounds[second]).toFixed(1)} nats`;
    $("guess-text").textContent =
      `Guess: ${conditions.tileTexts[guess]}. Its bound on log p(x|y) is ${lead} above that of ` +
      `${conditions.tileTexts[second]}. The bars are the softmax of the bounds, each an estimate ` +
      "from one stored sample of z.";
    $("label").options[0].textContent = `as guessed (${conditions.tileTexts[guess]})`;
  }

  showExample() {
    const { explorer } = this;
    const { image } = explorer.examples[explorer.example];
    this.drawing.showImage(toCanvas(image, explorer.model.shape));
  }

  /** Show z and the tiles. */
  showStyle() {
    const { explorer } = this;
    const { z, images, directions } = explorer;
    images.forEach((image, i) => paint(this.tiles[i], image, explorer.model.shape));
    this.setters.forEach((set, i) => set(dot(z, directions.named[i].vector)));
    this.#showDimension();
    this.plane.position = explorer.axes.map((i) => dot(z, directions.all[i].vector));
    this.plane.show();
    this.#scheduleLink();
  }

  showPlane(images) {
    this.plane.showTiles(images, this.explorer.model.shape);
  }

  showEnd(end, image) {
    paint($(`picture-${end}`), image, this.explorer.model.shape);
    this.#describeEnds();
  }

  #describeEnds() {
    const { ends } = this.explorer;
    for (const [end, z] of Object.entries(ends)) {
      const canvas = $(`picture-${end}`);
      canvas.setAttribute("aria-label", `Style ${end.toUpperCase()}${z ? "" : ": empty"}`);
      if (!z) {
        canvas.width = 0; // clears it
      }
    }
    $("morph").disabled = !(ends.a && ends.b);
  }

  /** Show the settings in the controls, for example after a link changes them. */
  showSettings() {
    const { explorer } = this;
    explorer.conditions.refresh();
    $("ink").value = this.drawing.ink;
    $("paper").value = this.drawing.paper;
    $("temperature").value = explorer.temperature;
    $("temperature-value").textContent = explorer.temperature.toFixed(2);
    ["axis-x", "axis-y"].forEach((id, i) => ($(id).value = String(explorer.axes[i])));
    this.plane.axes = explorer.axes.map((i) => explorer.directions.all[i]);
    $("dimension").value = String(explorer.dimension);
    $("morph").value = explorer.share;
    this.#describeEnds();
    markTile($("tiles"), explorer.chosenTile);
    this.#showLabel();
    this.#showDimension();
  }

  #showLabel() {
    const { label, conditions } = this.explorer;
    $("label").value = label === null ? "0" : String(label + (conditions.canGuess ? 1 : 0));
  }

  #showDimension() {
    const { z, directions, dimension } = this.explorer;
    const { vector, low, high } = directions.single[dimension];
    const range = { low, high, unit: this.unit };
    setSlider($("dimension-value"), $("dimension-output"), dot(z, vector), range);
  }

  // ---- building the controls

  #showTexts(texts) {
    document.title = texts.title;
    $("title").textContent = texts.title;
    $("model-name").textContent = texts.model;
    $("explanation").textContent = texts.explanation;
    $("result-title").textContent = texts.result;
    $("privacy").textContent = texts.privacy;
  }

  #connectDrawing(description) {
    const { explorer } = this;
    this.drawing = new Drawing($("drawing"), description, () => explorer.onDrawingChange());
    const { drawing } = this;
    on("undo", "click", () => drawing.undo());
    on("clear", "click", () => drawing.clear());
    $("pen").value = drawing.pen;
    on("pen", "input", () => (drawing.pen = $("pen").valueAsNumber));
    $("colors").hidden = description.pixels !== "color";
    if (description.pixels === "color" && explorer.examples.length) {
      Object.assign(drawing, colorsOf(explorer.examples[0].image, description.image_shape));
    }
    on("ink", "input", () => (drawing.ink = $("ink").value));
    on("paper", "input", () => drawing.setPaper($("paper").value));
    addExamples($("examples"), explorer.examples, description.image_shape, (i) =>
      explorer.chooseExample(i),
    );
  }

  #connectConditions() {
    const { explorer } = this;
    const { conditions } = explorer;
    $("guess-block").hidden = !conditions.canGuess;
    $("label-block").hidden = !conditions.isLabelled;
    if (conditions.isLabelled) {
      $("label-name").textContent = conditions.tilePart.name;
      const guessed = conditions.canGuess ? ["as guessed"] : [];
      fillSelect($("label"), [...guessed, ...conditions.tileTexts]);
      on("label", "change", () => {
        const index = Number($("label").value) - (conditions.canGuess ? 1 : 0);
        explorer.chooseLabel(index < 0 ? null : index);
      });
    }
    conditions.addControls($("given"), "encoderValues", " of the drawing", () =>
      explorer.encodeAgain(),
    );
    conditions.addControls($("wanted"), "decoderValues", "", () =>
      explorer.update("decode", "plane"),
    );
    const describe = (text) =>
      text ? `Show ${conditions.tilePart.name} ${text} in the plane` : "Decoded image";
    this.tiles = addTiles($("tiles"), conditions.tileTexts, describe, (i) => {
      markTile($("tiles"), i);
      explorer.chooseTile(i);
    });
    $("tiles").classList.toggle("single", this.tiles.length === 1);
  }

  #connectStyle() {
    const { explorer } = this;
    const { directions } = explorer;
    this.setters = directions.named.map((direction) =>
      addSlider($("directions"), { ...direction, unit: this.unit }, (value) =>
        explorer.moveAlong(direction, value),
      ),
    );
    fillSelect($("dimension"), directions.single.map(({ text }) => text));
    on("dimension", "change", () => {
      explorer.dimension = Number($("dimension").value);
      this.#showDimension();
      this.#scheduleLink();
    });
    enableFineSteps($("dimension-value"));
    on("dimension-value", "input", () => {
      explorer.moveAlong(directions.single[explorer.dimension], $("dimension-value").valueAsNumber);
    });
    this.plane = new Plane($("plane"), (at) => explorer.moveInPlane(at));
    for (const id of ["axis-x", "axis-y"]) {
      fillSelect($(id), directions.all.map(({ text }) => text));
      on(id, "change", () => {
        explorer.axes = [Number($("axis-x").value), Number($("axis-y").value)];
        this.showSettings();
        explorer.update("decode", "plane");
      });
    }
  }

  #connectSamples(description) {
    const { explorer } = this;
    $("sample-block").hidden = !description.has_prior;
    on("sample", "click", () => explorer.sample(standardNormal(description.latent_dim)));
    on("temperature", "input", () => {
      explorer.setTemperature($("temperature").valueAsNumber);
      this.showSettings();
      this.#scheduleLink();
    });
    on("keep-a", "click", () => explorer.storeEnd("a"));
    on("keep-b", "click", () => explorer.storeEnd("b"));
    on("morph", "input", () => explorer.morph($("morph").valueAsNumber));
  }

  #connectButtons(description) {
    const { explorer } = this;
    on("reset", "click", () => explorer.restoreImage());
    on("save", "click", () => {
      const { tileTexts } = explorer.conditions;
      const tiles = explorer.images.map((image, i) => ({ image, text: tileTexts[i] }));
      const input = explorer.noise ? null : explorer.x;
      savePicture(input, tiles, description.image_shape, description.name);
    });
    on("copy", "click", () => this.#copyLink());
    window.addEventListener("hashchange", () => this.restoreLink());
  }

  // ---- links

  #scheduleLink() {
    clearTimeout(this.linkTimer);
    this.linkTimer = setTimeout(() => this.#writeLink(), LINK_DELAY);
  }

  #writeLink() {
    clearTimeout(this.linkTimer);
    this.hash = `#${encodeState(this.explorer.snapshot())}`;
    history.replaceState(null, "", this.hash);
  }

  async #copyLink() {
    this.#writeLink();
    try {
      await navigator.clipboard.writeText(location.href);
      this.showMessage("Link copied.");
    } catch {
      this.showMessage("The browser did not copy the link: copy it from the address bar.");
    }
  }

  /** Restore the state in the address; return false if it has none or one of another model. */
  async restoreLink() {
    if (location.hash.length < 2 || location.hash === this.hash) {
      return false;
    }
    const snapshot = decodeState(location.hash.slice(1));
    const fits = snapshot !== null && (await this.explorer.restore(snapshot));
    this.showMessage(fits ? "" : "This link does not match the model, so nothing changed.");
    return fits;
  }
}
