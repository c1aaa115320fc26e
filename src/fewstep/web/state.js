/**
 * The state of the page, kept in the fragment of its address.
 *
 * @typedef {object} State
 * @property {"seeds" | "morph" | "paint"} mode how the start is chosen
 * @property {string} start the selected start
 * @property {number} first the first seed of the grid
 * @property {number} near share of the way to the neighbours in the grid; 0 shows new seeds
 * @property {string[]} pins starts that are pinned, the first four are the corners of the pad
 * @property {"2" | "4"} corners how many pins a morph is between
 * @property {number} x
 * @property {number} y
 * @property {number | null} label the class; null for classes in turn
 * @property {string} prompt
 * @property {string} negative a prompt to guide away from
 * @property {number} guidance
 * @property {string[]} shown results, such as "0:4" for 4 steps of the first generator
 * @property {string[]} wipe two of them, or none
 * @property {number} freedom from 0 to 1
 * @property {string} drawing pixels of the canvas, in base64url
 * @property {"" | "webgpu" | "wasm"} backend empty: chosen by the page
 */

import { MAX_SEED, parseStart } from "./sampling.js";

/** The largest weight of guidance that its slider has. */
export const MAX_GUIDANCE = 10;

const number = (low, high, digits = 3) => ({
  write: (value) => String(Number(value.toFixed(digits))),
  read: (text) => {
    const value = Number(text);
    return text !== "" && value >= low && value <= high ? Number(value.toFixed(digits)) : null;
  },
});
const choice = (...names) => ({
  write: (value) => value,
  read: (text) => (names.includes(text) ? text : null),
});
const list = (test) => ({
  write: (values) => values.join("_"),
  read: (text) => (text === "" ? [] : [...new Set(text.split("_").filter(test))]),
});
export const MAX_PROMPT = 1000;
/** A prompt as an address can have it: without halves of a character, and not too long. */
export const toPrompt = (text) =>
  text.replaceAll(/[\ud800-\udfff]/gu, "\ufffd").slice(0, MAX_PROMPT);
const prompt = { write: toPrompt, read: toPrompt };
const isBase64 = (text) => /^[\w-]*$/.test(text) && text.length % 4 !== 1;
const isResult = (text) => /^\d:[1-9]\d{0,3}$/.test(text);

const FIELDS = {
  mode: choice("seeds", "morph", "paint"),
  start: { write: String, read: (text) => (parseStart(text) ? text : null) },
  first: number(0, MAX_SEED - 1000, 0),
  near: number(0, 1),
  pins: list((text) => parseStart(text) !== null),
  corners: choice("2", "4"),
  x: number(0, 1),
  y: number(0, 1),
  label: {
    write: (value) => (value === null ? "turn" : String(value)),
    read: (text) => (/^-?\d{1,5}$/.test(text) ? Number(text) : undefined),
  },
  prompt,
  negative: prompt,
  guidance: number(0, MAX_GUIDANCE),
  shown: list(isResult),
  wipe: list(isResult),
  freedom: number(0, 1),
  drawing: { write: String, read: (text) => (isBase64(text) ? text : null) },
  backend: choice("webgpu", "wasm"),
};

/** The fragment of an address for a state: what differs from the defaults. */
export function writeState(state, defaults) {
  const fields = Object.keys(FIELDS).map((name) => [
    name,
    FIELDS[name].write(state[name]),
    FIELDS[name].write(defaults[name]),
  ]);
  const changes = fields.filter(([, value, initial]) => value !== initial);
  return changes.map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join("&");
}

/** The state of a fragment; fields that are missing or malformed have their defaults. */
export function readState(fragment, defaults) {
  const texts = new URLSearchParams(fragment.replace(/^#/, "")), state = { ...defaults };
  for (const [name, field] of Object.entries(FIELDS)) {
    const value = texts.has(name) ? field.read(texts.get(name)) : null;
    if (value !== null) {
      state[name] = value === undefined ? null : value;
    }
  }
  return state;
}

const REST = 500;

/** Keeps a state in the address: changes by hand make entries of the history once they rest. */
export class Address {
  /** @param {(state: State) => void} onVisit called when the user goes back, forth or edits it */
  constructor(defaults, onVisit) {
    this.defaults = defaults;
    this.written = location.hash;
    window.addEventListener("hashchange", () => {
      if (location.hash !== this.written) {
        this.written = location.hash;
        clearTimeout(this.timer);
        onVisit(this.read());
      }
    });
  }

  read() {
    return readState(location.hash, this.defaults);
  }

  write(state) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.written = `#${writeState(state, this.defaults)}`;
      location.hash = this.written;
      this.written = location.hash;
    }, REST);
  }
}
