/**
 * Controls of pictures for the exported page and the studio: a wipe over two pictures, a pad
 * between four, a canvas to paint on, and a grid of seeds.
 *
 * Each is a function `(root, options)` that fills the element `root` and returns
 * `{ update(options), destroy() }`; `update` takes any part of the options. They work by mouse,
 * touch and keyboard, and report values while they are dragged, at most once a frame. Names are
 * written as text, never as HTML.
 *
 * @typedef {import("./dom.js").Picture} Picture
 * @typedef {import("./dom.js").Widget} Widget
 */

import {
  clamp, element, followArrows, followPointer, oncePerFrame, showPicture, widget,
} from "./dom.js";

export { paint } from "./paint.js";

/**
 * Two pictures, of which the left one covers the right one up to a line that is dragged.
 * @param {HTMLElement} root
 * @param {{ left: Picture, right: Picture, names: string[], position?: number,
 *           onChange?: (position: number) => void }} options
 * @returns {Widget}
 */
export function wipe(root, options) {
  options = { position: 0.5, onChange() {}, ...options };
  const report = oncePerFrame((position) => options.onChange(position));
  const left = element("div", { className: "fs-wipe-left" });
  const right = element("div", { className: "fs-wipe-right" });
  const names = [0, 1].map((side) => element("span", { className: `fs-name fs-name-${side}` }));
  const line = element("div", { className: "fs-wipe-line" });
  const box = element(
    "div",
    { className: "fs-wipe", tabIndex: 0, role: "slider", "aria-valuemin": 0, "aria-valuemax": 100 },
    right, left, line, ...names,
  );
  const move = (position) => {
    options.position = clamp(position);
    place();
    report(options.position);
  };
  const place = () => {
    const percent = Math.round(options.position * 1000) / 10;
    left.style.clipPath = `inset(0 ${100 - percent}% 0 0)`;
    line.style.left = `${percent}%`;
    box.setAttribute("aria-valuenow", String(Math.round(percent)));
  };
  followPointer(box, move);
  followArrows(box, (dx) => move(options.position + dx * 0.02));
  return widget(root, options, [box], () => {
    showPicture(left, options.left, options.names[0]);
    showPicture(right, options.right, options.names[1]);
    names.forEach((name, side) => (name.textContent = options.names[side]));
    box.setAttribute("aria-label", `wipe between ${options.names[0]} and ${options.names[1]}`);
    place();
  });
}

/**
 * A square with a handle between four corners: top left, top right, bottom left, bottom right.
 * @param {HTMLElement} root
 * @param {{ corners: string[], x?: number, y?: number,
 *           onChange?: (x: number, y: number) => void }} options
 * @returns {Widget}
 */
export function morphPad(root, options) {
  options = { x: 0.5, y: 0.5, onChange() {}, ...options };
  const report = oncePerFrame((x, y) => options.onChange(x, y));
  const corners = [0, 1, 2, 3].map((i) => {
    return element("span", { className: `fs-corner fs-corner-${i}` });
  });
  const handle = element("div", { className: "fs-handle" });
  const pad = element(
    "div",
    { className: "fs-pad", tabIndex: 0, role: "slider", "aria-valuemin": 0, "aria-valuemax": 100 },
    ...corners, handle,
  );
  const move = (x, y) => {
    options.x = clamp(x);
    options.y = clamp(y);
    place();
    report(options.x, options.y);
  };
  const place = () => {
    const [across, down] = [options.x, options.y].map((value) => Math.round(value * 100));
    handle.style.left = `${across}%`;
    handle.style.top = `${down}%`;
    pad.setAttribute("aria-valuenow", String(across));
    pad.setAttribute("aria-valuetext", `${across}% across, ${down}% down`);
  };
  followPointer(pad, move);
  followArrows(pad, (dx, dy) => move(options.x + dx * 0.02, options.y + dy * 0.02));
  return widget(root, options, [pad], () => {
    corners.forEach((corner, i) => (corner.textContent = options.corners[i] ?? ""));
    pad.setAttribute("aria-label", `morph between ${options.corners.join(", ")}`);
    place();
  });
}

/**
 * Pictures of seeds: one is selected, some are pinned. Arrow keys move between them, Enter selects
 * and P pins.
 * @param {HTMLElement} root
 * @param {{ images: { seed: number | string, url?: string, canvas?: HTMLCanvasElement }[],
 *           selected?: number | string | null, pinned?: (number | string)[],
 *           onSelect?: (seed: number | string) => void,
 *           onPin?: (seed: number | string) => void }} options
 * @returns {Widget}
 */
export function seedGrid(root, options) {
  options = { selected: null, pinned: [], onSelect() {}, onPin() {}, ...options };
  const grid = element("div", { className: "fs-grid", role: "group", "aria-label": "seeds" });
  const cells = [];
  const columns = () => getComputedStyle(grid).gridTemplateColumns.split(" ").length;

  function makeCell(index) {
    const select = element("button", { className: "fs-select", type: "button" });
    const pin = element("button", { className: "fs-pin", type: "button", textContent: "★" });
    const cell = { node: element("div", { className: "fs-cell" }, select, pin), select, pin };
    select.addEventListener("click", () => options.onSelect(options.images[index].seed));
    pin.addEventListener("click", () => options.onPin(options.images[index].seed));
    cell.node.addEventListener("keydown", (event) => {
      if (event.key === "p") {
        options.onPin(options.images[index].seed);
      }
    });
    followArrows(select, (dx, dy) => cells[index + dx + dy * columns()]?.select.focus());
    return cell;
  }

  return widget(root, options, [grid], () => {
    while (cells.length < options.images.length) {
      cells.push(makeCell(cells.length));
      grid.append(cells.at(-1).node);
    }
    for (const cell of cells.splice(options.images.length)) {
      cell.node.remove();
    }
    options.images.forEach(({ seed, url, canvas }, index) => {
      const { select, pin } = cells[index], pinned = options.pinned.includes(seed);
      showPicture(select, canvas ?? url, `seed ${seed}`);
      select.setAttribute("aria-label", `seed ${seed}`);
      select.setAttribute("aria-pressed", String(seed === options.selected));
      pin.setAttribute("aria-label", `${pinned ? "unpin" : "pin"} seed ${seed}`);
      pin.setAttribute("aria-pressed", String(pinned));
      pin.title = pin.getAttribute("aria-label");
    });
  });
}
