// The exported networks, run by ONNX Runtime Web, and the condition vectors y that they take.
import * as ort from "./runtime/ort.wasm.min.mjs";

ort.env.wasm.numThreads = 1; // threads need headers that a static host may not send
ort.env.wasm.wasmPaths = new URL("runtime/", import.meta.url).href;
ort.env.logLevel = "error";

/** Repeat one row of numbers. */
function repeat(row, count) {
  const rows = new Float32Array(row.length * count);
  for (let i = 0; i < count; i++) {
    rows.set(row, i * row.length);
  }
  return rows;
}

/** Join rows of equal length into one array. */
function stack(rows) {
  const joined = new Float32Array(rows.length * rows[0].length);
  rows.forEach((row, i) => joined.set(row, i * row.length));
  return joined;
}

/** Split an array into rows. */
function unstack(values, count) {
  const size = values.length / count;
  return Array.from({ length: count }, (_, i) => values.slice(i * size, (i + 1) * size));
}

export class Model {
  /** Load model.json and the networks. */
  static async load() {
    const url = (name) => new URL(`model/${name}`, import.meta.url).href;
    const response = await fetch(url("model.json"));
    if (!response.ok) {
      throw new Error(`model/model.json: ${response.status} ${response.statusText}`);
    }
    const description = await response.json();
    const model = new Model();
    Object.assign(model, { description, shape: description.image_shape, parts: description.parts });
    model.isConditional = description.parts.length > 0;
    const names = ["encoder", "decoder", ...(description.has_bound ? ["likelihood"] : [])];
    const sessions = await Promise.all(
      names.map((name) => ort.InferenceSession.create(url(`${name}.onnx`))),
    );
    names.forEach((name, i) => (model[name] = sessions[i]));
    return model;
  }

  /** Return the vector y that the networks take, from the value of each part. */
  condition(values) {
    const y = new Float32Array(this.description.condition_size);
    for (const { name, kind, start } of this.parts) {
      if (kind === "categorical") {
        y[start + values[name]] = 1;
      } else {
        y[start] = values[name];
      }
    }
    return y;
  }

  #inputs(session, tensors) {
    // the exporter removes inputs that no output depends on
    return Object.fromEntries(session.inputNames.map((name) => [name, tensors[name]]));
  }

  #rows(values) {
    return new ort.Tensor("float32", stack(values), [values.length, values[0].length]);
  }

  /**
   * Encode one image with several conditions.
   * @returns for each condition the latent and, for a VAE, a sample of z and its
   *   log p(z|y) - log q(z|x,y).
   */
  async encode(x, ys) {
    const count = Math.max(1, ys.length);
    const tensors = {
      x: new ort.Tensor("float32", repeat(x, count), [count, ...this.shape]),
      eps: this.#rows(Array(count).fill(Float32Array.from(this.description.eps))),
    };
    if (this.isConditional) {
      tensors.y = this.#rows(ys);
    }
    const outputs = await this.encoder.run(this.#inputs(this.encoder, tensors));
    const latents = unstack(outputs.latent.data, count);
    if (!this.description.has_bound) {
      return { latents };
    }
    const samples = unstack(outputs.sample.data, count);
    return { latents, samples, logRatios: outputs.log_ratio.data };
  }

  async #decode(latents, ys) {
    const tensors = { latent: this.#rows(latents) };
    if (this.isConditional) {
      tensors.y = this.#rows(ys);
    }
    return this.decoder.run(this.#inputs(this.decoder, tensors));
  }

  /** Return the pixel means of each latent with its condition. */
  async decode(latents, ys) {
    const { mean } = await this.#decode(latents, ys);
    return unstack(mean.data, latents.length);
  }

  /** Return the bound on log p(x|y) of each condition, estimated from one sample of z, in nats. */
  async bounds(x, ys, { samples, logRatios }) {
    const { parameters } = await this.#decode(samples, ys);
    const images = new ort.Tensor("float32", repeat(x, ys.length), [ys.length, ...this.shape]);
    const outputs = await this.likelihood.run({ parameters, x: images });
    return Array.from(outputs.log_prob.data, (value, i) => value + logRatios[i]);
  }
}
