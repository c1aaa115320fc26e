/** The page of an export: the picture follows every control. */

import { element } from "./dom.js";
import { Models, Newest, pause } from "./models.js";
import { isSingleFile, naming, readFile } from "./network.js";
import {
  ConditionPanel, MorphPanel, PaintPanel, SeedsPanel, chips, gridStarts, morphCorners,
} from "./panels.js";
import { PromptBox } from "./prompt.js";
import { Results, drawImage } from "./results.js";
import { parseStart, placeNoise } from "./sampling.js";
import { Address } from "./state.js";

const MODES = [["seeds", "Seeds"], ["morph", "Morph"], ["paint", "Paint"]];
const BACKENDS = [["webgpu", "GPU"], ["wasm", "CPU"]];
const CACHE = 256;

const byId = (id) => document.getElementById(id);

/** Show one line about what the page does, or what is wrong. */
function showStatus(text, isProblem = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("problem", isProblem);
}

/** Where the noise of a state is: `{ corners, x, y }`. */
function placeOf(state) {
  const corners = morphCorners(state), isWhole = corners.length === Number(state.corners);
  if (state.mode === "morph" && isWhole) {
    return { corners, x: state.x, y: state.y };
  }
  return { corners: [state.start], x: 0, y: 0 };
}

function placeName({ corners, x, y }) {
  if (corners.length === 1) {
    return corners[0];
  }
  const at = (corners.length === 2 ? [x] : [x, y]).map((value) => Number(value.toFixed(3)));
  return `between ${corners.join(" ")} at ${at.join(", ")}`;
}

class Page {
  constructor(description) {
    this.description = description;
    this.models = new Models(description, showStatus);
    this.thumbnails = new Map();
    this.afterFirst = keepOffline; // the first picture does not wait for it
    this.address = new Address(this.defaults(), (state) => this.visit(state));
    this.state = this.valid(this.address.read());
    const fail = (error) => {
      showStatus(error.message, true);
      document.body.dataset.busy = "false";
    };
    this.newest = new Newest((state, isStale) => this.work(state, isStale), fail);
    this.build();
    this.visit(this.state);
  }

  defaults() {
    const [first, teacher] = this.models.list, own = first.steps.slice(0, teacher ? 2 : 3);
    const shown = [...new Set([...own, first.about.default_steps])].map((steps) => `0:${steps}`);
    if (teacher) {
      shown.push(`1:${teacher.about.default_steps}`);
    }
    return {
      mode: "seeds", start: "0", first: 0, near: 0, pins: ["0", "1", "2", "3"], corners: "2",
      x: 0.5, y: 0.5, label: this.models.tokenizer ? -1 : null, guidance: first.about.guidance.weight, shown,
      prompt: this.description.prompts[0] ?? "", negative: first.about.guidance.negative,
      wipe: shown.length > 1 ? [shown[0], shown.at(-1)] : [],
      freedom: 0.5, drawing: "", backend: "",
    };
  }

  /** A state from an address with only what this page has. */
  valid(state) {
    const { classes } = this.description;
    const known = ([index, steps]) => this.models.list[index]?.steps.includes(steps);
    const shown = state.shown.filter((key) => known(key.split(":").map(Number)));
    const label = state.label !== null && (state.label < -1 || state.label >= classes);
    return {
      ...state,
      shown: shown.length ? shown : this.defaults().shown,
      wipe: state.wipe.slice(-2),
      label: label ? null : state.label,
    };
  }

  build() {
    const { about, name } = this.description, change = (changes) => this.change(changes);
    document.title = byId("name").textContent = name;
    const { list } = this.models, [first] = list;
    this.results = new Results(byId("results"), this.models, { wipe: (key) => this.wipe(key) });
    this.pickers = list.map(({ about: { name: title }, steps }, index) => {
      const choices = steps.map((count) => [`${index}:${count}`, String(count)]);
      return { title, ...chips(`steps of ${title}`, choices, (key) => this.toggleResult(key)) };
    });
    this.modes = chips("start", MODES, (mode) => change({ mode }));
    this.backends = chips("processor", BACKENDS, (backend) => change({ backend }));
    const painter = list.find((model) => model.about.paint.reason === "") ?? first;
    this.panels = {
      seeds: new SeedsPanel(change),
      morph: new MorphPanel(change),
      paint: new PaintPanel(painter.about, first.shape, change),
    };
    this.condition = new ConditionPanel(this.description, change);
    this.prompt = new PromptBox(this.description, this.models.tokenizer, change);
    byId("prompt").append(this.prompt.root);
    byId("results").prepend(element("div", { className: "pickers" }, ...this.pickers.map(
      ({ title, root }) => element("div", {}, element("b", { textContent: title }), " steps", root),
    )));
    byId("controls").append(this.modes.root,
      ...Object.values(this.panels).map((panel) => panel.root), this.condition.root);
    byId("processor").append(this.backends.root);
    byId("about").append(...about.map(([key, value]) => element("div", {},
      element("dt", { textContent: key }), element("dd", { textContent: value }))));
  }

  /** Change the state by a control. */
  change(changes) {
    this.state = { ...this.state, ...changes };
    this.address.write(this.state);
    this.update();
  }

  /** Show a state from the address. */
  visit(state) {
    this.state = this.valid(state);
    this.update();
  }

  toggleResult(key) {
    const { shown } = this.state, has = shown.includes(key);
    if (!has || shown.length > 1) {
      const keys = has ? shown.filter((other) => other !== key) : [...shown, key];
      const order = (text) => text.split(":").reduce((sum, part) => 1e5 * sum + Number(part), 0);
      this.change({ shown: keys.sort((a, b) => order(a) - order(b)) });
    }
  }

  wipe(key) {
    const others = this.state.wipe.filter((other) => other !== key);
    const has = others.length < this.state.wipe.length;
    this.change({ wipe: has ? others : [...others, key].slice(-2) });
  }

  update() {
    const { state } = this;
    for (const [mode, panel] of Object.entries(this.panels)) {
      panel.root.hidden = mode !== state.mode;
      panel.update(state);
    }
    this.modes.update((mode) => mode === state.mode);
    this.pickers.forEach((picker) => picker.update((key) => state.shown.includes(key)));
    this.condition.update(state);
    this.prompt.update(state);
    this.results.arrange(state.shown);
    this.results.arrangeWipe(state.wipe);
    document.body.dataset.busy = "true";
    this.newest.request(state);
  }

  async work(state, isStale) {
    const place = placeOf(state), noise = placeNoise(place, this.models.list[0].size);
    const { seed } = parseStart(place.corners[0]);
    for (const key of state.shown) {
      await this.showResult(key, state, { noise, seed, name: placeName(place) });
      await pause();
      if (isStale()) {
        return;
      }
    }
    this.results.arrangeWipe(state.wipe);
    await this.showThumbnails(state, isStale);
    if (!isStale()) {
      document.body.dataset.busy = "false";
      this.afterFirst?.();
      this.afterFirst = null;
    }
  }

  async showResult(key, state, { noise, seed, name }) {
    const [index, steps] = key.split(":").map(Number), card = this.results.cards.get(key);
    const { reason } = this.models.list[index].about.paint, isPaint = state.mode === "paint";
    if (!card || (isPaint && reason)) {
      return card?.refuse(`cannot start from a picture: ${reason}`);
    }
    const model = await this.models.ready(index, state.backend);
    this.backends.update((backend) => backend === this.models.backend);
    this.backends.root.querySelector("button").disabled = !this.models.adapter.isUsable;
    const picture = isPaint
      ? { image: this.panels.paint.values, freedom: state.freedom } : null;
    if (isPaint && !model.program(steps, state.freedom)) {
      return card.refuse("too little freedom for this number of steps");
    }
    const label = this.labelOf(state, seed), guidance = this.guidanceOf(model, state);
    const { prompt, negative } = state;
    const sample = {
      noises: [noise], seeds: [seed], labels: [label], prompt, negative, guidance, picture,
    };
    const result = await model.generate(steps, sample);
    card.show(result, {
      Software: `fewstep ${this.description.fewstep}`,
      seed: name, label: String(label), guidance: String(guidance),
      ...(this.models.tokenizer ? { prompt, negative } : {}),
    });
  }

  labelOf({ label }, seed) {
    return label ?? (this.description.classes ? seed % this.description.classes : -1);
  }

  guidanceOf({ about }, state) {
    return about.guidance.reason ? about.guidance.weight : state.guidance;
  }

  /** Draw the small pictures of seeds that are visible and were not drawn before. */
  async showThumbnails(state, isStale) {
    const panel = this.panels[state.mode];
    const starts = { seeds: gridStarts(state), morph: state.pins, paint: [] }[state.mode];
    const model = await this.models.ready(0, state.backend);
    const guidance = this.guidanceOf(model, state);
    const { prompt, negative } = state;
    const version = JSON.stringify([state.label, prompt, negative, guidance]);
    if (this.version !== version || this.thumbnails.size > CACHE) {
      this.thumbnails.clear();
      this.version = version;
    }
    const missing = starts.filter((start) => !this.thumbnails.has(start));
    if (missing.length && !isStale()) {
      const noises = missing.map((start) => placeNoise({ corners: [start] }, model.size));
      const seeds = missing.map((start) => parseStart(start).seed);
      const labels = seeds.map((seed) => this.labelOf(state, seed));
      const sample = { noises, seeds, labels, prompt, negative, guidance, picture: null };
      const { images } = await model.generate(model.about.default_steps, sample);
      missing.forEach((start, row) => {
        const canvas = element("canvas");
        drawImage(canvas, images[row], model.shape);
        this.thumbnails.set(start, canvas);
      });
    }
    panel.show?.(state, this.thumbnails);
  }
}

/** Keep the files for visits without a server. Browsers allow it on https and on localhost. */
function keepOffline() {
  if (location.protocol.startsWith("http") && "serviceWorker" in navigator && !isSingleFile()) {
    navigator.serviceWorker.register("sw.js").catch((error) => showStatus(error.message));
  }
}

async function start() {
  try {
    const text = new TextDecoder().decode(await readFile("model.json"));
    window.page = new Page(await naming("model.json", () => JSON.parse(text)));
  } catch (error) {
    showStatus(error.message, true);
  }
}

start();