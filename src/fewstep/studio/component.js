// A Streamlit component that shows one widget.

/** Milliseconds without a change after which a drag counts as over. */
const REST = 400;
/** Milliseconds after which an unanswered report is given up, such as one of a run that failed. */
const PATIENCE = 3000;

const HANDLERS = ["onChange", "onSelect", "onPin"];
const WIDGETS = { range };
/** @type {WeakMap<Node, Mounted>} */
const mounted = new WeakMap();

/**
 * A slider: `range(root, {label, value: 0..1, onChange(value)})`.
 * @param {HTMLElement} root
 * @param {{label: string, value: number, left: string, right: string,
 *          onChange: (value: number) => void}} options
 */
function range(root, options) {
  const input = document.createElement("input");
  Object.assign(input, { type: "range", min: "0", max: "1", step: "0.005", value: options.value });
  input.setAttribute("aria-label", options.label);
  input.addEventListener("input", () => options.onChange(Number(input.value)));
  const [left, right] = [options.left, options.right].map((text) => {
    const span = document.createElement("span");
    span.textContent = text;
    return span;
  });
  const row = document.createElement("div");
  row.className = "range";
  row.append(left, input, right);
  root.replaceChildren(row);
  return {
    update: ({ left: a, right: b }) => ([left.textContent, right.textContent] = [a, b]),
    destroy: () => root.replaceChildren(),
  };
}

/** One widget, and its reports: one at a time, then the newest. */
class Mounted {
  constructor(root, data, send) {
    this.send = send;
    this.number = data.echo;
    this.waiting = null;
    this.inFlight = -Infinity;
    this.widget = WIDGETS[data.widget](root, { ...data.options, ...this.handlers() });
  }

  handlers() {
    const report = (kind) => (...values) => this.change(kind, values);
    return Object.fromEntries(HANDLERS.map((name) => [name, report(name)]));
  }

  change(kind, values) {
    clearTimeout(this.rest);
    const value = values.map((v) => (ArrayBuffer.isView(v) ? Array.from(v) : v));
    this.waiting = { kind, value: value.length === 1 ? value[0] : value, final: false };
    this.rest = setTimeout(() => this.finish(), REST);
    this.flush();
  }

  finish() {
    this.waiting = { ...(this.waiting ?? this.last), final: true };
    this.flush();
  }

  flush() {
    if (!this.waiting || performance.now() - this.inFlight < PATIENCE) return;
    this.number += 1;
    this.inFlight = performance.now();
    this.last = this.waiting;
    this.waiting = null;
    this.send({ ...this.last, number: this.number });
    setTimeout(() => this.flush(), PATIENCE + 1);
  }

  answer(data) {
    if (data.echo >= this.number) this.inFlight = -Infinity;
    this.widget.update(data.options);
    this.flush();
  }
}

export default function ({ parentElement, data, setStateValue }) {
  const known = mounted.get(parentElement);
  if (known) {
    known.answer(data);
    return undefined;
  }
  const root = parentElement.querySelector(".widget");
  const send = (report) => setStateValue("report", report);
  const widget = new Mounted(root, data, send);
  mounted.set(parentElement, widget);
  return () => {
    clearTimeout(widget.rest);
    widget.widget.destroy();
    mounted.delete(parentElement);
  };
}
