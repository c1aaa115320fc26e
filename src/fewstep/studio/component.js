
// A Streamlit component that shows one of the widgets above, which `bundle` puts in front.

/** Milliseconds without a change after which a drag counts as over. */
const REST = 400;
/** Milliseconds after which an unanswered report is given up, such as one of a run that failed. */
const PATIENCE = 3000;

const WIDGETS = { wipe, morphPad, paint, seedGrid, range };
const EVENTS = ["onSelect", "onPin"];
/** Options that the visitor changes: only a new widget takes them from the page. */
const OWN = ["position", "x", "y", "value", "image"];
/** @type {WeakMap<Node, Mounted>} */
const mounted = new WeakMap();

/**
 * A slider from 0 to 1 with a text at each end.
 * @param {HTMLElement} root
 * @param {{ label: string, value: number, left: string, right: string,
 *           onChange: (value: number) => void }} options
 * @returns {Widget}
 */
function range(root, options) {
  const input = element("input", {
    type: "range", min: "0", max: "1", step: "0.005", "aria-label": options.label,
  });
  input.value = String(options.value);
  input.addEventListener("input", () => options.onChange(Number(input.value)));
  const [left, right] = [element("span"), element("span")];
  const row = element("div", { className: "range" }, left, input, right);
  return widget(root, options, [row], () => {
    left.textContent = options.left;
    right.textContent = options.right;
  });
}

/** One widget, and its reports: one at a time, then the newest. */
class Mounted {
  constructor(root, data, send) {
    this.send = send;
    this.number = data.echo;
    this.waiting = null;
    this.sentAt = -Infinity;
    const options = { ...data.options };
    if (options.image) {
      options.image = Float32Array.from(options.image, (value) => value / 255);
    }
    for (const name of EVENTS) {
      options[name] = (value) => this.report({ event: name, value, final: true });
    }
    options.onChange = (...values) => this.change(values);
    this.widget = WIDGETS[data.widget](root, options);
  }

  /** A value while it is dragged, and once more when it has come to rest. */
  change([value, ...more]) {
    clearTimeout(this.rest);
    const bytes = ArrayBuffer.isView(value) && Array.from(value, (v) => Math.round(v * 255));
    const content = bytes || (more.length ? [value, ...more] : value);
    const report = { event: "onChange", value: content, final: false };
    this.report(report);
    this.rest = setTimeout(() => this.report({ ...report, final: true }), REST);
  }

  report(report) {
    this.waiting = report;
    this.flush();
  }

  flush() {
    if (!this.waiting || performance.now() - this.sentAt < PATIENCE) {
      return;
    }
    this.number += 1;
    this.sentAt = performance.now();
    // the time tells the first report of a widget from that of another one in its place
    this.send({ ...this.waiting, number: this.number, time: Date.now() });
    this.waiting = null;
    setTimeout(() => this.flush(), PATIENCE + 1);
  }

  /** The page was drawn again: with an echo of the last report, the next may go. */
  answer(data) {
    if (data.echo >= this.number) {
      this.sentAt = -Infinity;
    }
    const shown = Object.entries(data.options).filter(([name]) => !OWN.includes(name));
    this.widget.update(Object.fromEntries(shown));
    this.flush();
  }
}

export default function ({ parentElement, data, setStateValue }) {
  const present = mounted.get(parentElement);
  if (present) {
    present.answer(data);
    return undefined;
  }
  const root = parentElement.querySelector(".widget");
  const entry = new Mounted(root, data, (report) => setStateValue("report", report));
  mounted.set(parentElement, entry);
  return () => {
    clearTimeout(entry.rest);
    entry.widget.destroy();
    mounted.delete(parentElement);
  };
}
