// Texts of the page that depend on the model.

/** Return the title, the headings and the sentences of the page. */
export function makeTexts(description, { tilePart, isLabelled, tileTexts }) {
  const { name, kind, data, latent_dim: size, parts, centered, has_prior: hasPrior } = description;
  const thing = centered ? "digit" : "image";
  const content = centered ? "digit" : "content of the image";
  const article = centered ? "a" : "an";
  const style = centered ? "stroke thickness and slant" : "shape and texture";
  const count = tileTexts.length === 10 ? "ten" : tileTexts.length;
  const names = parts.map((part) => part.name).join(", ");
  const y = parts.length === 1 ? `The ${names} y` : `The condition y (${names})`;
  let explanation;
  if (tilePart) {
    explanation =
      `${y} selects the ${thing}. The latent z holds the rest, such as ${style}. The decoder ` +
      `takes both: with the same z, ${count} values of y give ${count} ${thing}s in one style.`;
  } else if (hasPrior) {
    explanation =
      "The decoder turns the latent z into an image. This model has no label y, so z holds both " +
      `the ${content} and its style, and a change of z may change both.`;
  } else {
    explanation =
      "The encoder maps an image to a code z, from which the decoder reconstructs the image. " +
      `This model has no label y, so z holds both the ${content} and its style. It has no prior ` +
      "either, so a point between two codes may not decode to a realistic image.";
  }
  let title = `Draw ${article} ${thing}, see its reconstruction`;
  let result = "2. See its reconstruction";
  if (isLabelled) {
    title = `Draw ${article} ${thing}, get ${count} in your style`;
    result = `2. See every ${tilePart.name} in this style`;
  } else if (tilePart) {
    title = `Draw ${article} ${thing}, change its ${tilePart.name}`;
    result = `2. See it with other values of ${tilePart.name}`;
  }
  return {
    title,
    explanation,
    result,
    model: `${kind} ${name}, trained on ${data}, ${size} latent dimensions`,
    privacy: "The model runs in this browser: no image leaves your machine.",
  };
}
