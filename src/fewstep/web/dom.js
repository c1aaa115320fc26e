/**
 * Elements, pointers, keys and pixels: what the widgets are made of.
 *
 * @typedef {HTMLCanvasElement | string} Picture a canvas, or the address of an image
 * @typedef {{ update(options: object): void, destroy(): void }} Widget
 */

export const clamp = (value, low = 0, high = 1) => Math.min(high, Math.max(low, value));

/** An element with properties (`dataset` and `aria…`, `role` included) and children. */
export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node && !name.startsWith("aria")) {
      node[name] = value;
    } else {
      node.setAttribute(name, value);
    }
  }
  node.append(...children);
  return node;
}

/** A function that runs `callback` in the next frame, with the arguments of its latest call. */
export function oncePerFrame(callback) {
  let latest = null;
  return (...values) => {
    if (latest === null) {
      requestAnimationFrame(() => {
        const current = latest;
        latest = null;
        callback(...current);
      });
    }
    latest = values;
  };
}

/** Call `onMove(x, y)` with positions from 0 to 1 in `target` while a pointer drags over it. */
export function followPointer(target, onMove) {
  const report = (event) => {
    const box = target.getBoundingClientRect();
    onMove(
      clamp((event.clientX - box.left) / box.width),
      clamp((event.clientY - box.top) / box.height),
    );
  };
  target.addEventListener("pointerdown", (event) => {
    target.setPointerCapture(event.pointerId);
    event.preventDefault();
    target.focus({ preventScroll: true });
    report(event);
  });
  target.addEventListener("pointermove", (event) => {
    if (target.hasPointerCapture(event.pointerId)) {
      report(event);
    }
  });
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Call `onMove(dx, dy)` with steps of −1, 0 or 1 for arrow keys; ten times as far with Shift. */
export function followArrows(target, onMove) {
  target.addEventListener("keydown", (event) => {
    const move = ARROWS[event.key];
    if (move) {
      event.preventDefault();
      const factor = event.shiftKey ? 10 : 1;
      onMove(move[0] * factor, move[1] * factor);
    }
  });
}

/** Show a picture as the only child of `holder`; a canvas is used as it is. */
export function showPicture(holder, picture, name) {
  const old = holder.firstElementChild;
  if (typeof picture !== "string") {
    picture.classList.add("fs-picture");
    if (old !== picture) {
      holder.replaceChildren(picture);
    }
  } else if (old?.tagName === "IMG") {
    Object.assign(old, { src: picture, alt: name });
  } else {
    const image = element("img", { src: picture, alt: name, className: "fs-picture" });
    image.draggable = false;
    holder.replaceChildren(image);
  }
}

/** A widget with `children` in `root`; `show(changes)` draws the options that have changed. */
export function widget(root, options, children, show) {
  root.replaceChildren(...children);
  show(options);
  return {
    update(changes) {
      Object.assign(options, changes);
      show(changes);
    },
    destroy() {
      root.replaceChildren();
    },
  };
}

/** The pixels of a canvas as (channels, height, width) in [0, 1]; one channel is the luminance. */
export function canvasValues(canvas, channels) {
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  const plane = width * height, values = new Float32Array(channels * plane);
  for (let i = 0; i < plane; i++) {
    const [red, green, blue] = data.subarray(4 * i, 4 * i + 3);
    if (channels === 1) {
      values[i] = (0.299 * red + 0.587 * green + 0.114 * blue) / 255;
    } else {
      values[i] = red / 255;
      values[plane + i] = green / 255;
      values[2 * plane + i] = blue / 255;
    }
  }
  return values;
}

/** Write values (channels, height, width) in [0, 1] to the pixels of a canvas. */
export function putValues(context, values, channels) {
  const { width, height } = context.canvas, plane = width * height;
  const pixels = context.createImageData(width, height);
  for (let i = 0; i < plane; i++) {
    for (let c = 0; c < 3; c++) {
      const value = values[(channels === 1 ? 0 : c * plane) + i];
      pixels.data[4 * i + c] = Math.round(255 * clamp(value));
    }
    pixels.data[4 * i + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
}
