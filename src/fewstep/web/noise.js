/**
 * Standard normal noise, bit for bit that of `fewstep.noise.RowNoise`.
 *
 * Uniform bits come from the counters of Philox4x64-10 (Salmon et al. 2011, "Parallel random
 * numbers: as easy as 1, 2, 3"), normal numbers from the ziggurat of 256 layers (Marsaglia & Tsang
 * 2000) in float32, as in NumPy's `Generator.standard_normal(dtype=float32)`.
 */

const f32 = Math.fround;
const ROUNDS = 10;
const MULTIPLIERS = [0xd2e7470e, 0xe14c6c93, 0xca5a8263, 0x95121157]; // high, low; high, low
const KEY_STEPS = [0x9e3779b9, 0x7f4a7c15, 0xbb67ae85, 0x84caa73b];

/** High 32 bits of the product of two 32-bit numbers. */
function multiplyHigh(a, b) {
  const aLow = a & 0xffff, aHigh = a >>> 16, bLow = b & 0xffff, bHigh = b >>> 16;
  const middle = aHigh * bLow + ((aLow * bLow) >>> 16);
  const carry = (aLow * bHigh + (middle & 0xffff)) >>> 16;
  return aHigh * bHigh + (middle >>> 16) + carry;
}

/** Write the four 32-bit words of a 64-bit product to `product`, the lowest first. */
function multiply(aHigh, aLow, bHigh, bLow, product) {
  const low = multiplyHigh(aLow, bLow);
  const cross1 = Math.imul(aHigh, bLow) >>> 0, cross2 = Math.imul(aLow, bHigh) >>> 0;
  const second = low + cross1 + cross2;
  const top = Math.imul(aHigh, bHigh) >>> 0;
  const third = top + multiplyHigh(aHigh, bLow) + multiplyHigh(aLow, bHigh)
    + Math.floor(second / 2 ** 32);
  product[0] = Math.imul(aLow, bLow);
  product[1] = second;
  product[2] = third;
  product[3] = multiplyHigh(aHigh, bHigh) + Math.floor(third / 2 ** 32);
}

/** The random bits of one key, in NumPy's order: the low half of each 64-bit word first. */
class Philox {
  /** @param {number[]} key the two 64-bit words as four 32-bit numbers: low, high, low, high */
  constructor(key) {
    this.key = Uint32Array.from(key);
    this.counter = 0;
    this.words = new Uint32Array(8);
    this.position = 8;
  }

  nextUint32() {
    if (this.position === 8) {
      this.counter += 1; // NumPy counts before its first block
      this.fill();
      this.position = 0;
    }
    return this.words[this.position++];
  }

  /** A number in [0, 1), a multiple of 2⁻²⁴. */
  nextFloat() {
    return (this.nextUint32() >>> 8) / 2 ** 24;
  }

  fill() {
    const words = this.words.fill(0), key = Philox.roundKey;
    words[0] = this.counter;
    key.set(this.key);
    for (let round = 0; round < ROUNDS; round++) {
      const first = Philox.first, second = Philox.second;
      multiply(MULTIPLIERS[0], MULTIPLIERS[1], words[1], words[0], first);
      multiply(MULTIPLIERS[2], MULTIPLIERS[3], words[5], words[4], second);
      words[0] = second[2] ^ words[2] ^ key[0];
      words[1] = second[3] ^ words[3] ^ key[1];
      words[4] = first[2] ^ words[6] ^ key[2];
      words[5] = first[3] ^ words[7] ^ key[3];
      words[2] = second[0];
      words[3] = second[1];
      words[6] = first[0];
      words[7] = first[1];
      this.advance(key);
    }
  }

  /** Add the constants of the key schedule. */
  advance(key) {
    for (let word = 0; word < 4; word += 2) {
      const low = key[word] + KEY_STEPS[word + 1];
      key[word + 1] += KEY_STEPS[word] + Math.floor(low / 2 ** 32);
      key[word] = low;
    }
  }

  static first = new Uint32Array(4);
  static second = new Uint32Array(4);
  static roundKey = new Uint32Array(4);
}

const LAYERS = 256;
const TAIL_START = 3.6541528853610087963519472518;
const MANTISSA = 2 ** 23;
/** √(π/2)·erfc(start/√2): the area under exp(−x²/2) beyond the start of the tail. */
const TAIL_AREA = 3.2339576466332173e-4;

/**
 * Edges, densities and acceptance limits of the layers; layer 0 is the base with the tail.
 * All layers have the same area, which gives the edge of each from the one below it.
 */
function zigguratTables() {
  const widths = new Float32Array(LAYERS), limits = new Uint32Array(LAYERS);
  const densities = new Float64Array(LAYERS);
  const base = Math.exp(-0.5 * TAIL_START * TAIL_START);
  const area = TAIL_START * base + TAIL_AREA;
  widths[0] = area / base / MANTISSA;
  limits[0] = Math.round((TAIL_START * base / area) * MANTISSA);
  densities[0] = 1;
  let edge = TAIL_START;
  densities[LAYERS - 1] = base;
  widths[LAYERS - 1] = edge / MANTISSA;
  for (let layer = LAYERS - 2; layer > 0; layer--) {
    const next = Math.sqrt(-2 * Math.log(area / edge + densities[layer + 1]));
    limits[layer + 1] = Math.round((next / edge) * MANTISSA);
    widths[layer] = next / MANTISSA;
    densities[layer] = Math.exp(-0.5 * next * next);
    edge = next;
  }
  return { widths, limits, densities: Float32Array.from(densities) };
}

const { widths, limits, densities } = zigguratTables();

const LN2_HIGH = f32(0.69313812256), LN2_LOW = f32(9.0580006145e-6);
const SERIES = [
  0.66666668653, 0.40000000596, 0.28571429849, 0.22222198546, 0.1818357259, 0.15313838422,
  0.1479819864,
].map(f32);
const BITS = new DataView(new ArrayBuffer(4));

/** The bits of a float32 as a number. */
function bitsOf(value) {
  BITS.setFloat32(0, value);
  return BITS.getUint32(0);
}

/** The float32 of these bits. */
function fromBits(bits) {
  BITS.setUint32(0, bits);
  return BITS.getFloat32(0);
}

/** s·(f²/2 + R(s²)), the part of log(1 + f) that its series gives, with s = f/(2 + f). */
function seriesPart(f, half) {
  const s = f32(f / f32(2 + f)), z = f32(s * s);
  const sum = SERIES.reduceRight((total, term) => f32(term + f32(z * total)), 0);
  return f32(s * f32(half + f32(z * sum)));
}

/** 1 + x as 2^exponent·(1 + f) with 1 + f between √½ and √2, and the rounding error of 1 + x. */
function splitPower(x) {
  const sum = f32(1 + x);
  const bits = bitsOf(sum), mantissa = bits & 0x7fffff, upper = mantissa >= 0x3504f7;
  const exponent = (bits >>> 23) - 127 + (upper ? 1 : 0);
  const f = f32(fromBits(mantissa | (upper ? 0x3f000000 : 0x3f800000)) - 1);
  const rest = upper ? (0x800000 - mantissa) >>> 2 : mantissa;
  return { exponent, f, error: f32(f32(x - f32(sum - 1)) / sum), rest };
}

/**
 * log(1 + x) for x in (−1, 0], rounded as the float32 function of the C library that NumPy calls
 * (the method of Sun's fdlibm): the correctly rounded value would differ in the last bit of a few
 * numbers in a million.
 */
function log1p(x) {
  if (bitsOf(x) < 0xbe95f61f) {
    const half = f32(f32(0.5 * x) * x);
    return f32(x - f32(half - seriesPart(x, half)));
  }
  const { exponent, f, error, rest } = splitPower(x);
  const high = f32(exponent * LN2_HIGH), low = f32(f32(exponent * LN2_LOW) + error);
  const half = f32(f32(0.5 * f) * f);
  if (rest > 0) {
    return f32(high - f32(f32(half - f32(seriesPart(f, half) + low)) - f));
  }
  if (f === 0) {
    return f32(high + low);
  }
  const small = f32(half * f32(1 - f32(f32(2 / 3) * f)));
  return f32(high - f32(f32(small - low) - f));
}

/** A number beyond the start of the tail (Marsaglia 1964), with the sign of bit 8. */
function tail(bits, mantissa) {
  const start = f32(TAIL_START), inverse = f32(1 / TAIL_START);
  for (;;) {
    const x = f32(-inverse * log1p(-bits.nextFloat()));
    const y = -log1p(-bits.nextFloat());
    if (f32(y + y) > f32(x * x)) {
      const value = f32(start + x);
      return (mantissa >>> 8) & 1 ? -value : value;
    }
  }
}

function nextNormal(bits) {
  for (;;) {
    const word = bits.nextUint32(), layer = word & 0xff, mantissa = word >>> 9;
    const size = f32(mantissa * widths[layer]), x = word & 0x100 ? -size : size;
    if (mantissa < limits[layer]) {
      return x;
    }
    if (layer === 0) {
      return tail(bits, mantissa);
    }
    const span = f32(densities[layer - 1] - densities[layer]);
    if (f32(f32(span * bits.nextFloat()) + densities[layer]) < Math.exp(-0.5 * x * x)) {
      return x;
    }
  }
}

/**
 * `length` standard normal numbers: those of draw number `draw` (0 is the starting noise) of the
 * row `row` of seed `seed`, all below 2³².
 * @returns {Float32Array}
 */
export function standardNormal(seed, row, draw, length) {
  const bits = new Philox([row, seed, draw, 0]);
  const numbers = new Float32Array(length);
  for (let i = 0; i < length; i++) {
    numbers[i] = nextNormal(bits);
  }
  return numbers;
}
