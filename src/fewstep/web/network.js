/**
 * The files of the page, and networks on onnxruntime-web.
 *
 * A page with everything inside holds each file in an element, as base64; otherwise the files lie
 * beside it.
 */

/** Whether the page holds its files. */
export function isSingleFile() {
  return document.getElementById("file:model.json") !== null;
}

/**
 * The contents of a file of the export.
 * @param {(share: number) => void} [onProgress]
 * @returns {Promise<Uint8Array>}
 */
export async function readFile(name, onProgress = () => {}) {
  const holder = document.getElementById(`file:${name}`);
  if (holder) {
    return decodeBase64(holder.textContent.trim());
  }
  const response = await fetch(name).catch(() => null);
  if (!response?.ok) {
    const hint = location.protocol === "file:"
      ? "pages of several files need a web server, such as `python -m http.server` in their folder"
      : response ? `the server answers ${response.status}` : "the server does not answer";
    throw new Error(`cannot load ${name}: ${hint}`);
  }
  return readBody(response, onProgress);
}

async function readBody(response, onProgress) {
  const total = Number(response.headers.get("Content-Length"));
  const reader = response.body.getReader(), chunks = [];
  let length = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    chunks.push(part.value);
    length += part.value.length;
    onProgress(total ? Math.min(1, length / total) : 0);
  }
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}

function decodeBase64(text) {
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) {
    bytes[i] = letters.charCodeAt(i);
  }
  return bytes;
}

/** The result of `use`, whose errors then name the file. */
export async function naming(file, use) {
  try {
    return await use();
  } catch (error) {
    throw new Error(`${file} is damaged: ${error.message}`);
  }
}

/** The contents of a file in gzip; servers may have decompressed it already. */
async function decompress(bytes) {
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) {
    return bytes;
  }
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Start onnxruntime-web from the two files of the runtime. */
export async function loadRuntime({ script, wasm }, onProgress) {
  const code = await readFile(script), binary = await readFile(wasm, onProgress);
  const address = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  const runtime = await naming(script, () => import(address));
  runtime.env.wasm.wasmBinary = await naming(wasm, () => decompress(binary));
  // more threads need headers that static servers do not send
  runtime.env.wasm.numThreads = 1;
  runtime.env.logLevel = "fatal";
  return runtime;
}

/**
 * Whether the browser has a graphics adapter, and whether that is hardware: its emulation is slower
 * than the CPU.
 */
export async function findAdapter() {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  const isEmulation = adapter?.info?.isFallbackAdapter ?? adapter?.isFallbackAdapter;
  return { isUsable: Boolean(adapter), isHardware: Boolean(adapter) && !isEmulation };
}

/**
 * Conditions of a batch, with an entry for each row.
 * @typedef {object} Conditions
 * @property {number[]} labels −1 for none
 * @property {{ tokens: number[], mask: number[] }[]} prompts those of a Tokenizer, if the network
 *   reads prompts
 */

/** A network of the export, for batches of images of one shape. */
export class Network {
  /** @param {{ inputs: string[], shape: number[] }} about */
  constructor(runtime, session, about) {
    this.runtime = runtime;
    this.session = session;
    this.inputs = about.inputs;
    this.shape = about.shape;
    this.size = about.shape.reduce((a, b) => a * b, 1);
  }

  static async open(runtime, bytes, about, backend) {
    const options = { executionProviders: [backend], logSeverityLevel: 3 };
    const session = await runtime.InferenceSession.create(bytes, options);
    return new Network(runtime, session, about);
  }

  /**
   * The raw output for a batch at one level.
   * @param {Conditions} conditions
   * @param {Conditions} avoided conditions to guide away from
   * @param {number} guidance weight of classifier-free guidance; 1 means none
   */
  async call(x, level, levelS, conditions, avoided, guidance) {
    const output = await this.run(x, level, levelS, conditions);
    if (guidance === 1 || !this.inputs.some((name) => name === "label" || name === "tokens")) {
      return output;
    }
    const plain = await this.run(x, level, levelS, avoided);
    return output.map((value, i) => guidance * value + (1 - guidance) * plain[i]);
  }

  async run(x, level, levelS, { labels, prompts }) {
    const { Tensor } = this.runtime, rows = x.length / this.size;
    const fill = (value) => new Tensor("float32", new Float32Array(rows).fill(value), [rows]);
    const values = {
      x: () => new Tensor("float32", x, [rows, ...this.shape]),
      level: () => fill(level),
      level_s: () => fill(levelS),
      label: () => new Tensor("int64", BigInt64Array.from(labels, BigInt), [rows]),
      tokens: () => {
        const tokens = prompts.flatMap((prompt) => prompt.tokens);
        return new Tensor("int64", BigInt64Array.from(tokens, BigInt), [rows, tokens.length / rows]);
      },
      token_mask: () => {
        const mask = prompts.flatMap((prompt) => prompt.mask);
        return new Tensor("bool", Uint8Array.from(mask), [rows, mask.length / rows]);
      },
    };
    const feeds = Object.fromEntries(this.inputs.map((name) => [name, values[name]()]));
    const { output } = await this.session.run(feeds);
    return output.data;
  }

  release() {
    return this.session.release();
  }
}
