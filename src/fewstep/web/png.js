/** PNG files with text about their picture. */

const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) {
    n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  }
  return n;
});

function checksum(bytes) {
  const sum = bytes.reduce((crc, byte) => CRC[(crc ^ byte) & 0xff] ^ (crc >>> 8), 0xffffffff);
  return (sum ^ 0xffffffff) >>> 0;
}

/** An iTXt chunk: UTF-8 text, not compressed. */
function textChunk(keyword, text) {
  const data = new TextEncoder().encode(`iTXt${keyword}\0\0\0\0\0${text}`);
  const chunk = new Uint8Array(data.length + 8), view = new DataView(chunk.buffer);
  view.setUint32(0, data.length - 4);
  chunk.set(data, 4);
  view.setUint32(data.length + 4, checksum(data));
  return chunk;
}

/**
 * A PNG file of a canvas.
 * @param {Record<string, string>} texts by keyword
 * @returns {Promise<Blob>}
 */
export async function pngWithTexts(canvas, texts) {
  const file = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  const bytes = new Uint8Array(await file.arrayBuffer());
  const chunks = Object.entries(texts).map(([keyword, text]) => textChunk(keyword, text));
  const end = 8 + 25; // the signature and the header, which must come first
  return new Blob([bytes.subarray(0, end), ...chunks, bytes.subarray(end)], { type: "image/png" });
}
