// Controls that depend on the model: sliders, lists, tiles, examples and bars.
import { paint } from "./pixels.js";

/** Return a new element with these properties and children. */
export function element(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

let numSliders = 0;

/** Set a slider and the text of its value. A value outside of the range extends it. */
export function setSlider(input, output, value, { low, high, unit = "" }) {
  Object.assign(input, { min: Math.min(low, value), max: Math.max(high, value), value });
  const decimals = high - low < 20 ? 1 : 0;
  const rounded = Number(value.toFixed(decimals)) + 0; // 0 instead of -0
  output.textContent = `${rounded.toFixed(decimals)}${unit}`;
  input.setAttribute("aria-valuetext", output.textContent);
}

/**
 * Add a labelled slider.
 * @returns a function that sets its value without calling onInput.
 */
export function addSlider(parent, { text, low, high, unit = "" }, onInput) {
  const id = `slider-${numSliders++}`;
  const input = element("input", { id, type: "range", min: low, max: high });
  const output = element("output");
  const range = { low, high, unit };
  output.setAttribute("for", id);
  enableFineSteps(input);
  input.addEventListener("input", () => {
    const value = input.valueAsNumber;
    setSlider(input, output, value, range);
    onInput(value);
  });
  const label = element("label", { htmlFor: id, textContent: text });
  parent.append(element("div", { className: "slider" }, label, input, output));
  return (value) => setSlider(input, output, value, range);
}

/** Let a slider take any value, and let the arrow keys move it by a hundredth of its range. */
export function enableFineSteps(input) {
  const signs = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 };
  input.step = "any"; // steps would round the value of z
  input.addEventListener("keydown", (event) => {
    if (event.key in signs) {
      input.value = input.valueAsNumber + (signs[event.key] * (input.max - input.min)) / 100;
      input.dispatchEvent(new Event("input"));
      event.preventDefault();
    }
  });
}

/** Fill a list with texts; the value of each option is its position. */
export function fillSelect(select, texts) {
  select.replaceChildren(
    ...texts.map((text, i) => element("option", { value: String(i), textContent: text })),
  );
}

/**
 * Add a button with a canvas for each text.
 * @returns the canvases.
 */
export function addTiles(parent, texts, describe, onChoose) {
  return texts.map((text, i) => {
    const canvas = element("canvas");
    const button = element("button", { type: "button", className: "tile" }, canvas, text);
    button.setAttribute("aria-label", describe(text, i));
    button.addEventListener("click", () => onChoose(i));
    parent.append(button);
    return canvas;
  });
}

/** Mark the chosen button of those that addTiles added. */
export function markTile(parent, chosen) {
  [...parent.children].forEach((button, i) => button.setAttribute("aria-pressed", i === chosen));
}

/** Add the held-out images of the model as buttons. */
export function addExamples(parent, examples, shape, onChoose) {
  const describe = (_, i) => `Held-out image, ${examples[i].text}`;
  const canvases = addTiles(parent, examples.map(() => ""), describe, onChoose);
  canvases.forEach((canvas, i) => {
    paint(canvas, examples[i].image, shape);
    canvas.parentElement.title = examples[i].text;
  });
}

/** Return the softmax of log probabilities. */
function softmax(values) {
  const largest = Math.max(...values);
  const powers = values.map((value) => Math.exp(value - largest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((value) => value / sum);
}

/** Show the probability of each label as a bar. */
export function showBars(list, texts, bounds) {
  if (list.children.length !== texts.length) {
    list.replaceChildren(
      ...texts.map((text) =>
        element(
          "li",
          {},
          element("span", { className: "name", textContent: text }),
          element("span", { className: "bar" }, element("span")),
          element("span", { className: "percent" }),
        ),
      ),
    );
  }
  const shares = softmax(bounds);
  const best = bounds.indexOf(Math.max(...bounds));
  shares.forEach((share, i) => {
    const row = list.children[i];
    const [, bar, percent] = row.children;
    row.classList.toggle("best", i === best);
    row.title = `bound on log p(x|y): ${bounds[i].toFixed(1)} nats`;
    bar.firstChild.style.width = `${100 * share}%`;
    percent.textContent = share > 0.99 ? "> 99 %" : `${(100 * share).toFixed(0)} %`;
  });
}
