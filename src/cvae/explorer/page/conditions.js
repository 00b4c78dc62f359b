// The conditions y: those of the drawing, for the encoder, and those of the tiles, for the decoder.
import { addSlider, element, fillSelect } from "./controls.js";

const NUM_VALUES = 10; // tiles of a continuous part

/** Return the middle of the range of a continuous part, or the first class of a categorical one. */
function initialValue({ kind, low, high }) {
  return kind === "categorical" ? 0 : (low + high) / 2;
}

export class Conditions {
  /** @param model the loaded model. Its first categorical part gets a tile for each class. */
  constructor(model) {
    const { parts } = model;
    this.model = model;
    this.tilePart = parts.find(({ kind }) => kind === "categorical") ?? parts[0] ?? null;
    this.otherParts = parts.filter((part) => part !== this.tilePart);
    this.setters = { encoderValues: {}, decoderValues: {} };
    this.reset();
    this.tileValues = [null]; // value of tilePart in each tile
    this.tileTexts = [""];
    if (this.tilePart?.kind === "categorical") {
      this.tileValues = this.tilePart.names.map((_, i) => i);
      this.tileTexts = this.tilePart.names;
    } else if (this.tilePart) {
      const { low, high } = this.tilePart;
      const at = (i) => low + (i * (high - low)) / (NUM_VALUES - 1);
      this.tileValues = Array.from({ length: NUM_VALUES }, (_, i) => at(i));
      this.tileTexts = this.tileValues.map((value) => Number(value.toPrecision(3)).toString());
    }
  }

  get isLabelled() {
    return this.tilePart?.kind === "categorical";
  }

  /** True if the model can estimate the label of a drawing. */
  get canGuess() {
    return this.isLabelled && this.model.description.has_bound;
  }

  #conditionsPerTile(settings) {
    if (!this.tilePart) {
      return [];
    }
    const { name } = this.tilePart;
    return this.tileValues.map((value) => this.model.condition({ ...settings, [name]: value }));
  }

  /** Return one y for each tile. */
  tileConditions() {
    return this.#conditionsPerTile(this.decoderValues);
  }

  /** Return one y for each label that the drawing may have. */
  labelConditions() {
    return this.#conditionsPerTile(this.encoderValues);
  }

  /** Return a list with y of the drawing; empty for a model without conditions. */
  drawingConditions() {
    return this.tilePart ? [this.model.condition(this.encoderValues)] : [];
  }

  /** Set all parts, of the drawing and of the tiles, from a condition vector. */
  setFromVector(y) {
    for (const { name, kind, start, size } of this.model.parts) {
      const columns = y.slice(start, start + size);
      const value = kind === "categorical" ? columns.indexOf(Math.max(...columns)) : columns[0];
      this.encoderValues[name] = this.decoderValues[name] = value;
    }
    this.refresh();
  }

  /** Set all parts, of the drawing and of the tiles, to their initial values. */
  reset() {
    const { parts } = this.model;
    this.encoderValues = Object.fromEntries(parts.map((part) => [part.name, initialValue(part)]));
    this.decoderValues = { ...this.encoderValues };
    this.refresh();
  }

  /** Show the values in the controls. */
  refresh() {
    for (const role of ["encoderValues", "decoderValues"]) {
      for (const [name, set] of Object.entries(this.setters[role])) {
        set(this[role][name]);
      }
    }
  }

  /**
   * Add a control for each part without tiles; without labels, the drawing gets one for every part.
   * @param role "encoderValues" or "decoderValues"
   * @param suffix text after the name of the part
   */
  addControls(parent, role, suffix, onChange) {
    const parts = role === "encoderValues" && !this.isLabelled ? this.model.parts : this.otherParts;
    for (const part of parts) {
      const text = `${part.name}${suffix}`;
      const change = (value) => {
        this[role][part.name] = value;
        onChange();
      };
      if (part.kind === "continuous") {
        this.setters[role][part.name] = addSlider(parent, { text, ...part }, change);
        continue;
      }
      const select = element("select");
      fillSelect(select, part.names);
      select.addEventListener("change", () => change(Number(select.value)));
      parent.append(element("div", { className: "row" }, element("label", {}, `${text} `, select)));
      this.setters[role][part.name] = (value) => (select.value = String(value));
    }
    this.refresh();
  }
}
