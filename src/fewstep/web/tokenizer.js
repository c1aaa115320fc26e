/**
 * The tokens of prompts, as `fewstep.text.learned` computes them in Python.
 *
 * @typedef {object} Table `tokenizer.json` of an export
 * @property {number} length the largest number of tokens; the rest of a prompt is cut off
 * @property {number} longest_prompt characters of a prompt that are read
 * @property {string} normalized characters to normalize, as the inside of a regular expression's
 *   brackets
 * @property {string} start marks a piece that starts a word
 * @property {string[]} pieces whose ids follow those of the 256 bytes
 * @property {string[]} words that the captions have
 */

const BYTES = 256;
const WORD = /[a-z0-9\u{80}-\u{10ffff}]+|[^ \t\n\r\f\v]/gu;
/** The byte of a lone surrogate, which UTF-8 does not have: a question mark. */
const NO_CHARACTER = 63;

export class Tokenizer {
  /** @param {Table} table */
  constructor(table) {
    this.table = table;
    this.runs = new RegExp(`[${table.normalized}]+`, "gu");
    this.ids = new Map(table.pieces.map((piece, i) => [piece, BYTES + i]));
    this.longest = Math.max(0, ...table.pieces.map((piece) => [...piece].length));
    this.words = new Set(table.words);
  }

  /**
   * The tokens of a prompt, with zeros after them, and the mask: 1 for those of the prompt.
   * @returns {{ tokens: number[], mask: number[] }}
   */
  encode(prompt) {
    const { length } = this.table, ids = this.tokenIds(prompt).slice(0, length);
    const fill = (value) => Array.from({ length: length - ids.length }, () => value);
    return { tokens: [...ids, ...fill(0)], mask: [...ids.map(() => 1), ...fill(0)] };
  }

  /** The ids of all tokens of a prompt. */
  tokenIds(prompt) {
    return this.split(prompt).flatMap((word) => this.wordIds(word));
  }

  /** The words of a prompt that no caption has, in order, without punctuation marks. */
  unknownWords(prompt) {
    const isWord = (word) => /^[a-z0-9\u{80}-\u{10ffff}]/u.test(word);
    return this.split(prompt).filter((word) => isWord(word) && !this.words.has(word));
  }

  split(prompt) {
    const text = [...prompt].slice(0, this.table.longest_prompt).join("");
    const normalized = text.replaceAll(this.runs, (run) =>
      run.normalize("NFKC").toLowerCase().replaceAll("ς", "σ").normalize("NFKC"));
    return normalized.match(WORD) ?? [];
  }

  /** The longest pieces from the start of a word; the bytes of characters that no piece has. */
  wordIds(word) {
    const { start } = this.table, rest = [start, ...word], ids = [];
    let at = 0;
    while (at < rest.length - 1 || (at < rest.length && rest[at] !== start)) {
      const size = this.longestPiece(rest, at);
      if (size) {
        ids.push(this.ids.get(rest.slice(at, at + size).join("")));
        at += size;
      } else {
        at += rest[at] === start ? 1 : 0;
        ids.push(...bytesOf(rest[at]));
        at += 1;
      }
    }
    return ids;
  }

  /** The number of characters of the longest piece at a place; 0 if there is none. */
  longestPiece(characters, at) {
    let size = Math.min(characters.length - at, this.longest);
    while (size && !this.ids.has(characters.slice(at, at + size).join(""))) {
      size--;
    }
    return size;
  }
}

function bytesOf(character) {
  const isSurrogate = /^[\ud800-\udfff]$/u.test(character);
  return isSurrogate ? [NO_CHARACTER] : new TextEncoder().encode(character);
}
