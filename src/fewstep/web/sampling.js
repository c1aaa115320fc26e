/**
 * Samples: places in the noise, and the programs that turn noise into images.
 *
 * A start is written as a seed with turns, as in the studio: `7` is the noise of seed 7, and
 * `7~12:0.2` turns it by a fifth of the way towards the noise of seed 12.
 */

import { standardNormal } from "./noise.js";

export const MAX_SEED = 2 ** 30 - 1;
const START = /^\d{1,10}(~\d{1,10}:[01](\.\d{1,6})?){0,16}$/;

/**
 * The seed and the turns of a start; null for text that names none.
 * @returns {{ seed: number, turns: [number, number][] } | null}
 */
export function parseStart(text) {
  if (!START.test(text)) {
    return null;
  }
  const [seed, ...turns] = text.split("~");
  const start = { seed: Number(seed), turns: turns.map((turn) => turn.split(":").map(Number)) };
  const seeds = [start.seed, ...start.turns.map(([other]) => other)];
  const valid = seeds.every((n) => n <= MAX_SEED) && start.turns.every(([, share]) => share <= 1);
  return valid ? start : null;
}

/** Standard normal noise of a seed; draw 0 is the starting noise. */
export function seedNoise(seed, draw, length) {
  return standardNormal(seed, 0, draw, length);
}

/** The noise of a start. */
export function startNoise(text, length) {
  const { seed, turns } = parseStart(text);
  return turns.reduce(
    (noise, [other, share]) => interpolate(noise, seedNoise(other, 0, length), share),
    seedNoise(seed, 0, length),
  );
}

/**
 * The noise at a place between corners: two, or four in the order top left, top right, bottom left,
 * bottom right. One corner is a place by itself.
 * @param {{ corners: string[], x: number, y: number }} place
 */
export function placeNoise({ corners, x, y }, length) {
  const noises = corners.map((corner) => startNoise(corner, length));
  if (noises.length === 1) {
    return noises[0];
  }
  const top = interpolate(noises[0], noises[1], x);
  return noises.length === 2 ? top : interpolate(top, interpolate(noises[2], noises[3], x), y);
}

/** Spherical interpolation: `a` at 0, `b` at 1. Shoemake 1985, doi:10.1145/325334.325242. */
export function interpolate(a, b, share) {
  let product = 0, squareA = 0, squareB = 0;
  for (let i = 0; i < a.length; i++) {
    product += a[i] * b[i];
    squareA += a[i] * a[i];
    squareB += b[i] * b[i];
  }
  const cosine = product / Math.max(Math.sqrt(squareA * squareB), 1e-12);
  const angle = Math.acos(Math.min(1, Math.max(-1, cosine))), sine = Math.sin(angle);
  // there is no arc between parallel vectors: the straight line is the limit
  const straight = sine < 1e-6;
  const near = straight ? 1 - share : Math.sin((1 - share) * angle) / sine;
  const far = straight ? share : Math.sin(share * angle) / sine;
  return Float32Array.from(a, (value, i) => near * value + far * b[i]);
}

/** `count` starts around one, turned by `share` towards seeds of their own. */
export function neighbours(text, count, share) {
  const { turns } = parseStart(text);
  const base = turns.length < 16 ? text : text.slice(0, text.lastIndexOf("~"));
  return Array.from({ length: count }, (_, i) => {
    const [bits] = new Uint32Array(seedNoise(hash(text), i + 1, 1).buffer);
    return `${base}~${bits % (MAX_SEED + 1)}:${Number(share.toFixed(3))}`;
  });
}

function hash(text) {
  return [...text].reduce((sum, letter) => (Math.imul(sum, 31) + letter.charCodeAt(0)) >>> 0, 7);
}

/**
 * Run a sampling program; docs/browser.md lists the instructions.
 * @param {{ instructions: object[] }} program
 * @param {Float32Array[]} inputs the noise and, if the program takes one, the picture in [-1, 1]
 * @param {(x: Float32Array, level: number, levelS: number | null) => Promise<Float32Array>} network
 * @param {(number: number) => Float32Array} draw fresh noise
 * @returns {Promise<Float32Array>} the images, about [-1, 1]
 */
export async function runProgram(program, inputs, network, draw) {
  const registers = [...inputs];
  for (const { noise, sum, clip, network: terms, level, level_s: levelS } of program.instructions) {
    if (noise !== undefined) {
      registers.push(draw(noise));
    } else if (sum !== undefined) {
      registers.push(addTerms(registers, sum, clip));
    } else {
      registers.push(await network(addTerms(registers, terms, null), level, levelS));
    }
  }
  return registers.at(-1);
}

/** The number of calls of the network in a program. */
export function countCalls(program) {
  return program.instructions.filter((instruction) => "network" in instruction).length;
}

function addTerms(registers, terms, clip) {
  const total = new Float32Array(registers[0].length);
  for (const [register, factor] of terms) {
    const values = registers[register];
    for (let i = 0; i < total.length; i++) {
      total[i] += factor * values[i];
    }
  }
  if (clip === null) {
    return total;
  }
  // 0 * Infinity is NaN: the clip would hide infinite values, which are a failure of the network
  return total.map((value) => Math.min(clip, Math.max(-clip, value)) + 0 * value);
}
