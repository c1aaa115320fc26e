/** The generators of the page: their networks, and samples of batches. */

import { Tokenizer } from "./tokenizer.js";
import { Network, findAdapter, loadRuntime, readFile } from "./network.js";
import { countCalls, runProgram, seedNoise } from "./sampling.js";

/**
 * @typedef {object} Sample what to generate, a row for each noise
 * @property {Float32Array[]} noises
 * @property {number[]} seeds of the noise that a sampler adds
 * @property {number[]} labels −1 for none
 * @property {string} prompt of all rows; empty for none
 * @property {string} negative a prompt to guide away from, in place of none
 * @property {number} guidance
 * @property {{ image: Float32Array, freedom: number } | null} picture to start from, in [0, 1]
 */

/** A generator of model.json. */
export class Model {
  /** @param {Tokenizer | null} tokenizer null for a model without prompts */
  constructor(about, shape, tokenizer) {
    this.about = about;
    this.shape = shape;
    this.tokenizer = tokenizer;
    this.size = shape.reduce((a, b) => a * b, 1);
    this.steps = Object.keys(about.programs).map(Number);
    this.network = null;
  }

  /** The program for a number of steps; null if it cannot start from a picture of that noise. */
  program(steps, freedom = null) {
    if (freedom === null) {
      return this.about.programs[steps];
    }
    const { freedoms, programs } = this.about.paint;
    const distances = freedoms.map((value) => Math.abs(value - freedom));
    return programs[steps]?.[distances.indexOf(Math.min(...distances))] ?? null;
  }

  /**
   * @param {Sample} sample
   * @returns {Promise<{ images: Float32Array[], milliseconds: number, calls: number }>}
   */
  async generate(steps, { noises, seeds, labels, prompt, negative, guidance, picture }) {
    const program = this.program(steps, picture?.freedom);
    const inputs = [joinRows(noises)];
    if (picture) {
      const image = picture.image.map((value) => 2 * value - 1);
      inputs.push(joinRows(noises.map(() => image)));
    }
    const draw = (number) => joinRows(seeds.map((seed) => seedNoise(seed, number, this.size)));
    const conditions = this.conditions(labels, prompt);
    const avoided = this.conditions(labels.map(() => -1), negative);
    const network = (x, level, levelS) =>
      this.network.call(x, level, levelS, conditions, avoided, guidance);
    const start = performance.now();
    const values = await runProgram(program, inputs, network, draw);
    const milliseconds = performance.now() - start;
    if (!values.every(Number.isFinite)) {
      throw new Error(`${this.about.name} computes NaN or infinite values on this processor`);
    }
    const images = noises.map((_, row) => this.imageOf(values, row));
    return { images, milliseconds, calls: countCalls(program) * (guidance === 1 ? 1 : 2) };
  }

  /** The conditions of rows with these labels and this prompt. */
  conditions(labels, prompt) {
    const text = this.tokenizer?.encode(prompt);
    return { labels, prompts: text ? labels.map(() => text) : [] };
  }

  /** One row in [0, 1]. */
  imageOf(values, row) {
    const image = values.slice(row * this.size, (row + 1) * this.size);
    return image.map((value) => (Math.min(1, Math.max(-1, value)) + 1) / 2);
  }
}

function joinRows(rows) {
  const length = rows[0].length, batch = new Float32Array(rows.length * length);
  rows.forEach((row, i) => batch.set(row, i * length));
  return batch;
}

/** The models of the page on one runtime, whose networks are loaded when they are first needed. */
export class Models {
  constructor(description, onStatus) {
    const { shape, generators, runtime, tokenizer } = description;
    this.tokenizer = tokenizer && new Tokenizer(tokenizer);
    this.description = description;
    this.files = runtime;
    this.list = generators.map((about) => new Model(about, shape, this.tokenizer));
    this.onStatus = onStatus;
    this.backend = "";
    this.runtime = this.adapter = null;
  }

  /** The model with its network loaded, on the wanted backend or on that of the page's choice. */
  async ready(index, wanted) {
    this.runtime ??= await loadRuntime(this.files, (share) => {
      this.onStatus(`loading the runtime: ${Math.round(100 * share)}%`);
    });
    this.adapter ??= await findAdapter();
    await this.useBackend(this.adapter.isUsable ? wanted || this.ownChoice() : "wasm");
    const model = this.list[index];
    if (!model.network) {
      this.onStatus(`loading ${model.about.name}`);
      model.network = await this.open(model);
    }
    this.onStatus("");
    return model;
  }

  ownChoice() {
    return this.adapter.isHardware ? "webgpu" : "wasm";
  }

  async open(model) {
    const { file } = model.about.network, bytes = await readFile(file);
    try {
      return await this.openOn(this.backend, bytes, model);
    } catch (error) {
      if (this.backend === "wasm") {
        throw new Error(`cannot run ${file}: ${error.message}`);
      }
      this.adapter.isUsable = false; // it cannot run the network
      this.backend = "wasm";
      return this.openOn("wasm", bytes, model);
    }
  }

  /** A network after its first call, which takes longer than others. */
  async openOn(backend, bytes, model) {
    const network = await Network.open(this.runtime, bytes, model.about.network, backend);
    await network.run(new Float32Array(network.size), 1, 1, model.conditions([-1], ""));
    return network;
  }

  async useBackend(backend) {
    if (backend === this.backend) {
      return;
    }
    this.backend = backend;
    for (const model of this.list) {
      await model.network?.release();
      model.network = null;
    }
  }
}

/** Does one piece of work at a time, and then the newest that was asked for. */
export class Newest {
  /** @param {(task: any, isStale: () => boolean) => Promise<void>} work */
  constructor(work, onError) {
    Object.assign(this, { work, onError, next: null, isRunning: false });
  }

  request(task) {
    this.next = { task };
    if (!this.isRunning) {
      this.isRunning = true;
      this.run().finally(() => (this.isRunning = false));
    }
  }

  async run() {
    while (this.next) {
      const { task } = this.next;
      this.next = null;
      try {
        await this.work(task, () => this.next !== null);
      } catch (error) {
        this.onError(error);
      }
    }
  }
}

/** Let the browser handle events and draw. */
export const pause = () => new Promise((resolve) => setTimeout(resolve));
