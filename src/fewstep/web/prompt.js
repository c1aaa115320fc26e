/** Boxes for prompts. */

import { element } from "./dom.js";
import { MAX_PROMPT, toPrompt } from "./state.js";

/** Milliseconds after the last key, before the picture follows what is typed. */
const PAUSE = 400;
const MAX_WORDS = 8;

/** A box for one line of text, which it reports after a pause of typing, or on Enter. */
export function promptInput(label, placeholder, onPrompt) {
  const options = { type: "search", placeholder, maxLength: MAX_PROMPT, enterKeyHint: "go" };
  const box = element("input", { ...options, autocomplete: "off", "aria-label": label });
  const root = element("label", { className: "prompt" }, element("span", {}, label), box);
  let timer = 0;
  const report = () => {
    clearTimeout(timer);
    timer = 0;
    onPrompt(toPrompt(box.value));
  };
  box.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(report, PAUSE);
  });
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.isComposing) {
      report();
    }
  });
  box.addEventListener("change", report);
  const update = (text) => {
    // what is being typed remains
    if (timer === 0 && toPrompt(box.value) !== text) {
      box.value = text;
    }
  };
  return { root, update };
}

/** The prompt, examples of it, and which of its words the model does not know. */
export class PromptBox {
  /** @param {import("./tokenizer.js").Tokenizer | null} tokenizer null hides the box */
  constructor({ prompts }, tokenizer, change) {
    this.tokenizer = tokenizer;
    this.input = promptInput("Prompt", prompts[0] ?? "", (prompt) => change({ prompt }));
    this.examples = prompts.map((prompt) => {
      const button = element("button", { type: "button", className: "chip", textContent: prompt });
      button.addEventListener("click", () => change({ prompt }));
      return button;
    });
    const group = { className: "examples", role: "group", "aria-label": "examples of prompts" };
    this.note = element("p", { className: "note", role: "status" });
    this.root = element("div", { hidden: tokenizer === null }, this.input.root, this.note,
      element("div", group, ...this.examples));
  }

  update({ prompt }) {
    if (this.tokenizer) {
      this.input.update(prompt);
      this.examples.forEach((button) => {
        button.setAttribute("aria-pressed", String(button.textContent === prompt));
      });
      this.note.textContent = unknownNote(this.tokenizer.unknownWords(prompt));
    }
  }
}

function unknownNote(words) {
  const names = [...new Set(words)], more = names.length - MAX_WORDS;
  const list = names.slice(0, MAX_WORDS).map((word) => `“${word}”`).join(", ");
  const rest = more > 0 ? ` and ${more} more` : "";
  return names.length ? `Not among the words that the model has learned: ${list}${rest}` : "";
}
