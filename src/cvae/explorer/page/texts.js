// Sentences that depend on the model.

/** Return the title and the sentences of the page. */
export function explain(facts, { tilePart, isLabelled, texts }) {
  const { name, kind, data, latent_dim: size, parts, centered, has_prior: hasPrior } = facts;
  const thing = centered ? "digit" : "image";
  const article = centered ? "a" : "an";
  const style = centered ? "such as stroke thickness and slant" : "such as shape and texture";
  const count = texts.length === 10 ? "ten" : texts.length;
  const y = parts.length === 1 ? `The ${parts[0].name} y` : `The condition y (${parts.map((part) => part.name).join(", ")})`;
  let explanation;
  if (tilePart) {
    explanation =
      `${y} says what to draw; the decoder takes it as an input. The latent z holds what y leaves ` +
      `out, ${style}: one z decoded with ${count} values of y gives ${count} ${thing}s in one style.`;
  } else if (hasPrior) {
    explanation =
      `The latent z is the point that the decoder turns into an image: the ${thing} and its style. ` +
      "This model takes no label y, so a change of z may change both.";
  } else {
    explanation =
      `The latent z is the code that the encoder makes of an image, and from which the decoder ` +
      `restores the ${thing} and its style. This model has no label y and no prior, so a point ` +
      "between two codes need not decode to an image like those of the data.";
  }
  let title = `Draw ${article} ${thing}, see it decoded`;
  let result = "2. See it decoded";
  if (isLabelled) {
    title = `Draw ${article} ${thing}, get ${count} in your style`;
    result = `2. See every ${tilePart.name} in this style`;
  } else if (tilePart) {
    result = `2. See it with other values of ${tilePart.name}`;
  }
  return {
    title,
    explanation,
    result,
    model: `${kind} ${name}, trained on ${data}, latent of ${size} dimensions`,
    facts: "The model runs in this browser. Nothing is sent anywhere.",
  };
}
