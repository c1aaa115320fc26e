/** The results: a card for each generator and number of steps, and a wipe over two of them. */

import { element, putValues } from "./dom.js";
import { pngWithTexts } from "./png.js";
import { wipe } from "./widgets.js";

/** Write an image to a canvas of its size. */
export function drawImage(canvas, image, [channels, height, width]) {
  if (canvas.width !== width || canvas.height !== height) {
    Object.assign(canvas, { width, height });
  }
  putValues(canvas.getContext("2d"), image, channels);
}

const steps = (count) => `${count} step${count === 1 ? "" : "s"}`;
const calls = (count) => `${count} network call${count === 1 ? "" : "s"}`;

/** One result: its picture, what it took, and buttons. */
class Card {
  constructor(key, model, actions) {
    [this.index, this.steps] = key.split(":").map(Number);
    this.model = model;
    this.key = key;
    this.title = `${model.about.name}, ${steps(this.steps)}`;
    this.canvas = element("canvas", { className: "fs-picture", role: "img", width: 1, height: 1 });
    this.cost = element("small", { textContent: "…" });
    this.wipeButton = element("button", { type: "button", textContent: "Wipe" });
    this.wipeButton.title = "compare two results by a line that you drag";
    this.wipeButton.addEventListener("click", () => actions.wipe(key));
    this.save = element("button", { type: "button", textContent: "PNG", disabled: true });
    this.save.title = "download the picture, with seed, label and run in its metadata";
    this.save.addEventListener("click", () => this.download());
    const caption = element("figcaption", {},
      element("b", { textContent: model.about.name }), ` ${steps(this.steps)}`,
      element("br"), this.cost);
    const buttons = element("div", { className: "buttons" }, this.save, this.wipeButton);
    this.figure = element("figure", { className: "result" }, this.canvas, caption, buttons);
    this.figure.dataset.result = key;
  }

  show(result, texts) {
    drawImage(this.canvas, result.images[0], this.model.shape);
    this.cost.textContent = `${calls(result.calls)} · ${formatTime(result.milliseconds)}`;
    this.texts = { ...texts, steps: String(this.steps) };
    this.canvas.setAttribute("aria-label", `${this.title}, seed ${texts.seed}`);
    Object.assign(this.figure.dataset, { seed: texts.seed, label: texts.label });
    this.figure.classList.remove("unavailable");
    this.save.disabled = false;
  }

  refuse(reason) {
    this.cost.textContent = reason;
    this.figure.classList.add("unavailable");
    this.save.disabled = true;
  }

  get hasPicture() {
    return !this.save.disabled;
  }

  async download() {
    const { name, weights } = this.model.about;
    const texts = { run: name, run_hash: weights, ...this.texts };
    const address = URL.createObjectURL(await pngWithTexts(this.canvas, texts));
    const file = `${name}-${this.texts.seed}-${this.steps}.png`.replaceAll(/[^\w.~-]/g, "-");
    element("a", { href: address, download: file }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  }
}

function formatTime(milliseconds) {
  return `${milliseconds < 10 ? milliseconds.toFixed(1) : Math.round(milliseconds)} ms`;
}

/** All results of the page. */
export class Results {
  /** @param {{ wipe(key: string): void }} actions */
  constructor(root, models, actions) {
    this.models = models;
    this.actions = actions;
    this.cards = new Map();
    this.row = element("div", { className: "results" });
    this.wipeRoot = element("div", { className: "wipe-panel" });
    this.wipeCanvases = [element("canvas"), element("canvas")];
    root.append(this.row, this.wipeRoot);
  }

  /** Show a card for each of these results, in this order. */
  arrange(keys) {
    const old = [...this.cards.keys()];
    for (const key of keys) {
      if (!this.cards.has(key)) {
        const model = this.models.list[Number(key.split(":")[0])];
        this.cards.set(key, new Card(key, model, this.actions));
      }
    }
    old.filter((key) => !keys.includes(key)).forEach((key) => this.cards.delete(key));
    const figures = keys.map((key) => this.cards.get(key).figure);
    if (figures.some((figure, i) => this.row.children[i] !== figure) || old.length > keys.length) {
      this.row.replaceChildren(...figures);
    }
  }

  /** Draw the wipe over two results; without two of them there is none. */
  arrangeWipe(keys) {
    this.cards.forEach((card, key) => {
      card.wipeButton.setAttribute("aria-pressed", String(keys.includes(key)));
    });
    const cards = keys.map((key) => this.cards.get(key)).filter((card) => card?.hasPicture);
    if (cards.length < 2) {
      this.widget?.destroy();
      this.widget = null;
      return;
    }
    cards.forEach((card, side) => {
      const { canvas } = card, copy = this.wipeCanvases[side];
      Object.assign(copy, { width: canvas.width, height: canvas.height });
      copy.getContext("2d").drawImage(canvas, 0, 0);
    });
    const [left, right] = this.wipeCanvases, names = cards.map((card) => card.title);
    if (this.widget) {
      this.widget.update({ names });
    } else {
      this.widget = wipe(this.wipeRoot, { left, right, names });
    }
  }
}
