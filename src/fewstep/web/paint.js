/**
 * A canvas to paint on, pixel by pixel.
 *
 * @typedef {import("./dom.js").Widget} Widget
 */

import {
  canvasValues, clamp, element, followArrows, followPointer, oncePerFrame, putValues, widget,
} from "./dom.js";

const BACKGROUND = "#000000";
const GREYS = ["#ffffff", "#aaaaaa", "#555555", BACKGROUND];
const COLOURS = ["#ffffff", BACKGROUND, "#d62728", "#ff9f1c", "#ffe14d", "#2ca02c", "#1f77b4"];
const BRUSHES = [1, 2, 3];

/**
 * A canvas of `width` by `height` pixels with brushes, inks, and upload of a picture. With the
 * keyboard, arrow keys move the brush and Space paints.
 * @param {HTMLElement} root
 * @param {{ width: number, height: number, channels: number, image?: Float32Array | null,
 *           onChange?: (image: Float32Array) => void }} options `image` is (channels, height,
 *           width) in [0, 1]
 * @returns {Widget}
 */
export function paint(root, options) {
  options = { image: null, onChange() {}, ...options };
  const { width, height, channels } = options;
  const canvas = element("canvas", {
    className: "fs-picture fs-paint", width, height, tabIndex: 0, role: "img",
    "aria-label": "canvas: arrow keys move the brush, Space paints",
  });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const cursor = element("div", { className: "fs-cursor" });
  const inks = channels === 1 ? GREYS : COLOURS;
  const brush = { size: Math.max(1, Math.round(width / 16)), ink: inks[0] };
  const at = { x: Math.floor(width / 2), y: Math.floor(height / 2) };
  const report = oncePerFrame(() => options.onChange(canvasValues(canvas, channels)));

  function dab(x, y) {
    const first = (value) => Math.round(value - brush.size / 2 + 0.5);
    context.fillStyle = brush.ink;
    context.fillRect(first(x), first(y), brush.size, brush.size);
    Object.assign(at, { x, y });
  }

  /** Paint the pixels on the line from the last position. */
  function stroke(x, y, from) {
    const count = Math.max(1, Math.abs(x - from.x), Math.abs(y - from.y));
    const { x: x0, y: y0 } = from;
    for (let i = 1; i <= count; i++) {
      dab(Math.round(x0 + ((x - x0) * i) / count), Math.round(y0 + ((y - y0) * i) / count));
    }
    report();
  }

  function showCursor() {
    const part = (value, size) => `${(100 * value) / size}%`;
    Object.assign(cursor.style, {
      left: part(at.x, width), top: part(at.y, height), width: part(1, width),
      height: part(1, height),
    });
  }

  function clear() {
    fillBackground(context);
    report();
  }

  let down = false;
  canvas.addEventListener("pointerdown", () => (down = false), true);
  followPointer(canvas, (x, y) => {
    const pixel = {
      x: Math.min(width - 1, Math.floor(x * width)),
      y: Math.min(height - 1, Math.floor(y * height)),
    };
    stroke(pixel.x, pixel.y, down ? { ...at } : pixel);
    down = true;
    showCursor();
  });
  followArrows(canvas, (dx, dy) => {
    at.x = clamp(at.x + dx, 0, width - 1);
    at.y = clamp(at.y + dy, 0, height - 1);
    showCursor();
  });
  canvas.addEventListener("keydown", (event) => {
    if (event.key === " ") {
      event.preventDefault();
      stroke(at.x, at.y, { ...at });
    }
  });
  const upload = (file) => drawFile(context, file, channels).then(report);
  const tools = paintTools(brush, inks, { clear, upload });
  const box = element("div", { className: "fs-canvas" }, canvas, cursor);
  fillBackground(context);
  return widget(root, options, [box, tools], ({ image }) => {
    if (image) {
      putValues(context, image, channels);
    }
    showCursor();
  });
}

function fillBackground(context) {
  context.fillStyle = BACKGROUND;
  context.fillRect(0, 0, context.canvas.width, context.canvas.height);
}

/** Choices of ink and brush size, and the buttons of the canvas. */
function paintTools(brush, inks, actions) {
  const choose = (name, value, label, dot) => {
    const sample = element("span", { className: "fs-dot" });
    Object.assign(sample.style, dot);
    const properties = { type: "button", className: `fs-${name}`, "aria-label": label };
    const button = element("button", properties, sample);
    button.addEventListener("click", () => {
      brush[name] = value;
      mark();
    });
    return { button, name, value };
  };
  const choices = [
    ...inks.map((ink) => choose("ink", ink, `ink ${ink}`, { background: ink })),
    ...BRUSHES.map((size) => {
      const dot = { width: `${size * 5}px`, height: `${size * 5}px`, background: "currentColor" };
      return choose("size", size, `brush of ${size} pixels`, dot);
    }),
  ];
  const mark = () => {
    for (const { button, name, value } of choices) {
      button.setAttribute("aria-pressed", String(brush[name] === value));
    }
  };
  mark();
  const clear = element("button", { type: "button", textContent: "Clear" });
  clear.addEventListener("click", actions.clear);
  const file = element("input", { type: "file", accept: "image/*", className: "fs-file" });
  file.addEventListener("change", () => file.files.length && actions.upload(file.files[0]));
  const upload = element("label", { className: "fs-upload" }, "Picture…", file);
  const buttons = choices.map((choice) => choice.button);
  return element("div", { className: "fs-tools" }, ...buttons, clear, upload);
}

/** Draw a picture from a file, scaled to fit, with black bars. */
async function drawFile(context, file, channels) {
  const { width, height } = context.canvas;
  const picture = await createImageBitmap(file);
  const scale = Math.min(width / picture.width, height / picture.height);
  const size = [picture.width * scale, picture.height * scale];
  fillBackground(context);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, (width - size[0]) / 2, (height - size[1]) / 2, ...size);
  putValues(context, canvasValues(context.canvas, channels), channels);
}
