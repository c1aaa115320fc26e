/** Panels of controls, which change the state of the page. */

import { element, oncePerFrame } from "./dom.js";
import { MAX_SEED, neighbours } from "./sampling.js";
import { promptInput } from "./prompt.js";
import { MAX_GUIDANCE } from "./state.js";
import { morphPad, paint, seedGrid } from "./widgets.js";

export const GRID = 16;
/** Drawings of at most this many values are part of the address. */
const MAX_ADDRESS = 1024;

/** Buttons of which one is pressed. `choices` are pairs of a value and its text. */
export function chips(label, choices, onChoose) {
  const buttons = choices.map(([value, text]) => {
    const button = element("button", { type: "button", className: "chip", textContent: text });
    button.addEventListener("click", () => onChoose(value));
    return button;
  });
  const group = { className: "chips", role: "group", "aria-label": label };
  const root = element("div", group, ...buttons);
  const update = (isPressed) => buttons.forEach((button, i) => {
    button.setAttribute("aria-pressed", String(isPressed(choices[i][0])));
  });
  return { root, update };
}

/** A slider with its name and value. */
export function slider(label, { low, high, step, format }, onInput) {
  const input = element("input", { type: "range", min: low, max: high, step, "aria-label": label });
  const value = element("output"), note = element("small", { className: "note" });
  const report = oncePerFrame(() => onInput(Number(input.value)));
  const show = () => (value.textContent = format(Number(input.value)));
  input.addEventListener("input", () => {
    show();
    report();
  });
  const head = element("span", { className: "head" }, label, value);
  const root = element("label", { className: "slider" }, head, input, note);
  const update = (current, reason = "") => {
    input.disabled = reason !== "";
    note.textContent = reason;
    if (Number(input.value) !== current) {
      input.value = current;
    }
    show();
  };
  return { root, update };
}

const percent = (value) => `${Math.round(100 * value)}%`;
const share = { low: 0, high: 1, step: 0.005, format: percent };

/** The starts that the grid shows. */
export function gridStarts({ first, near, start }) {
  if (near > 0) {
    return [start, ...neighbours(start, GRID - 1, near)];
  }
  return Array.from({ length: GRID }, (_, i) => String(first + i));
}

/** The corners of a morph: the first two or four pins. */
export function morphCorners({ pins, corners }) {
  return pins.slice(0, Number(corners));
}

const button = (text, onClick) => {
  const node = element("button", { type: "button", textContent: text });
  node.addEventListener("click", onClick);
  return node;
};

/** A grid of seeds to pick from, and neighbours of the selected one. */
export class SeedsPanel {
  constructor(change) {
    const grid = element("div");
    const last = MAX_SEED - 1000;
    const move = (first) => change({ near: 0, first: Math.max(0, Math.min(last, first)) });
    this.near = slider("Neighbours of the selected seed", share, (near) => change({ near }));
    const buttons = element("div", { className: "buttons" },
      button("◀ Earlier", () => move(this.state.first - GRID)),
      button("Later ▶", () => move(this.state.first + GRID)),
      button("Random", () => move(Math.floor(Math.random() * 1e6))));
    this.grid = seedGrid(grid, {
      images: [],
      onSelect: (start) => change({ start }),
      onPin: (start) => change({ pins: togglePin(this.state.pins, start) }),
    });
    this.root = element("div", {}, buttons, grid, this.near.root);
  }

  update(state) {
    this.state = state;
    this.near.update(state.near);
  }

  show(state, canvases) {
    const images = gridStarts(state)
      .map((seed) => ({ seed, canvas: canvases.get(seed) }))
      .filter(({ canvas }) => canvas);
    this.grid.update({ images, selected: state.start, pinned: state.pins });
  }
}

function togglePin(pins, start) {
  return pins.includes(start) ? pins.filter((pin) => pin !== start) : [...pins, start];
}

/** A morph between two pins, or within four. */
export class MorphPanel {
  constructor(change) {
    this.count = chips("corners", [["2", "Two pins"], ["4", "Four pins"]], (corners) => {
      change({ corners });
    });
    this.pins = element("div", { className: "pins" });
    this.strip = seedGrid(this.pins, {
      images: [],
      onSelect: (start) => change({ mode: "seeds", start }),
      onPin: (start) => change({ pins: togglePin(this.state.pins, start) }),
    });
    this.slider = slider("From the first pin to the second", share, (x) => change({ x }));
    this.padRoot = element("div", { className: "square" });
    this.pad = morphPad(this.padRoot, {
      corners: ["", "", "", ""],
      onChange: (x, y) => change({ x, y }),
    });
    this.note = element("p", { className: "note" });
    this.root = element("div", {}, this.count.root, this.slider.root, this.padRoot, this.note,
      element("h3", { textContent: "Pins" }), this.pins);
  }

  update(state) {
    this.state = state;
    const corners = morphCorners(state), needed = Number(state.corners);
    const isShort = corners.length < needed;
    this.count.update((value) => value === state.corners);
    this.slider.root.hidden = needed !== 2 || isShort;
    this.padRoot.hidden = needed !== 4 || isShort;
    this.slider.update(state.x);
    this.pad.update({ corners: corners.map((pin) => `seed ${pin}`), x: state.x, y: state.y });
    this.note.textContent = isShort
      ? `Pin ${needed - corners.length} more under Seeds: this morph is between ${needed} pins.`
      : "";
  }

  show(state, canvases) {
    const images = state.pins.map((seed) => ({ seed, canvas: canvases.get(seed) }));
    const known = images.filter(({ canvas }) => canvas);
    this.strip.update({ images: known, selected: null, pinned: state.pins });
  }
}

/** A canvas, and how much of it the sample may change. */
export class PaintPanel {
  constructor(about, shape, change) {
    const [channels, height, width] = shape, root = element("div", { className: "square" });
    const { reason } = about.paint;
    this.reason = reason;
    this.values = new Float32Array(channels * height * width);
    this.drawing = "";
    this.freedom = slider("Freedom", share, (freedom) => change({ freedom }));
    const note = "Paint, or choose a picture. With little freedom only details change; with much, "
      + "hardly anything of it is left.";
    const text = reason ? `${about.name} cannot start from a picture: ${reason}.` : note;
    this.root = element("div", {}, element("p", { className: "note", textContent: text }), root,
      this.freedom.root);
    if (!reason) {
      this.canvas = paint(root, {
        width, height, channels, onChange: (values) => change(this.take(values)),
      });
    }
  }

  /** Keep the values of the canvas. Returns what changes in the state. */
  take(values) {
    this.values = values;
    this.drawing = values.length <= MAX_ADDRESS ? encode(values) : "";
    return { drawing: this.drawing };
  }

  update(state) {
    this.freedom.update(state.freedom, this.reason && " ");
    if (!this.reason && state.drawing !== this.drawing && this.values.length <= MAX_ADDRESS) {
      const values = decode(state.drawing, this.values.length);
      this.canvas.update({ image: values });
      Object.assign(this, { values, drawing: state.drawing });
    }
  }
}

function encode(values) {
  if (values.every((value) => value === 0)) {
    return "";
  }
  const letters = String.fromCharCode(...values.map((value) => Math.round(255 * value)));
  return btoa(letters).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function decode(text, length) {
  const letters = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  return Float32Array.from({ length }, (_, i) => (letters.charCodeAt(i) || 0) / 255);
}

/** Class, guidance, and what it leads away from. */
export class ConditionPanel {
  constructor({ classes, class_names: names, generators, tokenizer }, change) {
    const reasons = generators.map((about) => about.guidance.reason);
    const isFree = reasons.includes("");
    const choices = Array.from({ length: classes }, (_, i) => [i, names[i] ?? String(i)]);
    choices.unshift([null, "in turn"]);
    if (isFree || tokenizer) {
      choices.push([-1, "no class"]);
    }
    this.reason = isFree ? "" : reasons[0];
    this.labels = chips("class", choices, (label) => change({ label }));
    const format = (value) => value.toFixed(1);
    const high = Math.max(MAX_GUIDANCE, ...generators.map((about) => about.guidance.weight));
    const range = { low: 0, high, step: 0.1, format };
    this.guidance = slider("Guidance", range, (guidance) => change({ guidance }));
    const title = element("h3", { textContent: "Class", hidden: classes === 0 });
    this.labels.root.hidden = classes === 0;
    this.negative = promptInput("Negative prompt", "to avoid, with guidance above 1",
      (negative) => change({ negative }));
    this.negative.root.hidden = !(tokenizer && isFree);
    this.root = element("div", {}, title, this.labels.root, this.guidance.root,
      this.negative.root);
    this.root.hidden = classes === 0 && !tokenizer;
  }

  update({ label, guidance, negative }) {
    this.labels.update((value) => value === label);
    this.negative.update(negative);
    this.guidance.update(guidance, this.reason);
  }
}

