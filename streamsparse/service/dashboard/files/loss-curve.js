// The predicted loss of the network against what is bounded, with the chosen point: drawn as inline SVG.

import { QUANTITIES } from "./budget-model.js";
import { element, fill, newId } from "./dom.js";
import { lossUnit, percent, small } from "./format.js";

const HEIGHT = 220;
const MARGIN = { left: 58, right: 14, top: 12, bottom: 42 };

/** A figure that redraws when its width, its points or the chosen point change. */
export class LossCurve {
  constructor() {
    this.title = newId("curve");
    this.place = element("div", { class: "curve" });
    this.caption = element("figcaption");
    this.node = element("figure", {}, this.place, this.caption);
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(this.place);
  }

  dispose() {
    this.observer.disconnect();
  }

  setPoints(points, quantity, lossKind) {
    Object.assign(this, { points: points.filter((point) => point.loss > 0), quantity, lossKind });
    this.draw();
  }

  /** Where the budget is now: {value, loss}. */
  choose(chosen) {
    this.chosen = chosen;
    this.draw();
  }

  draw() {
    const width = this.place.clientWidth;
    if (!this.points?.length || width < 100) {
      fill(this.place);
      this.caption.textContent = this.points ? "The front has no point with a loss above zero: nothing to draw." : "";
      return;
    }
    const x = axis(this.points.map((point) => point.value), MARGIN.left, width - MARGIN.right);
    const y = axis(this.points.map((point) => point.loss), HEIGHT - MARGIN.bottom, MARGIN.top);
    const { noun } = QUANTITIES[this.quantity];
    const first = this.points[0];
    const last = this.points.at(-1);
    const about = `From ${percent(first.value)} (${small(first.loss)}) to ${percent(last.value)} (${small(last.loss)}).`;
    const steps = this.points.map((point, index) => `${index ? "L" : "M"}${x.at(point.value)},${y.at(point.loss)}`).join("");
    fill(this.place, element("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-labelledby": this.title },
      element("title", { id: this.title }, `Predicted loss against ${noun}. ${about}`),
      xAxis(x, width, `${noun}${this.quantity === "max-error" ? "" : " kept"} (%, logarithmic)`), yAxis(y, width),
      element("path", { class: "line", d: steps }), this.points.map((point) => element("circle", { class: "dot", cx: x.at(point.value), cy: y.at(point.loss), r: 2 })),
      this.chosen ? marker(this.chosen, x, y, first.loss < last.loss) : null));
    this.caption.textContent = `Predicted loss, ${lossUnit(this.lossKind)}, over ${noun}${this.quantity === "max-error" ? "" : " kept"}; both logarithmic.`;
  }
}

/** A logarithmic axis from pixels `from` to `to`, with ticks at 1, 2 and 5, or at powers of ten alone. */
function axis(values, from, to) {
  const [low, high] = [Math.log10(Math.min(...values)), Math.log10(Math.max(...values))];
  const span = high - low || 1;
  const at = (value) => Number((from + ((Math.log10(Math.max(value, 1e-300)) - low) / span) * (to - from)).toFixed(1));
  const room = Math.abs(to - from) / span;
  const digits = room > 110 ? [1, 2, 5] : [1];
  const stride = Math.max(1, Math.ceil(46 / room));
  const ticks = [];
  for (let power = Math.floor(low); power <= Math.ceil(high); power += 1) {
    if (power % stride !== 0) continue;
    ticks.push(...digits.map((digit) => digit * 10 ** power).filter((tick) => Math.log10(tick) >= low - 1e-9 && Math.log10(tick) <= high + 1e-9));
  }
  return { at, ticks, from, to, clamp: (pixel) => Math.min(Math.max(pixel, Math.min(from, to)), Math.max(from, to)) };
}

function xAxis(x, width, label) {
  const base = HEIGHT - MARGIN.bottom;
  return element("g", { class: "axis" },
    x.ticks.map((tick) => [
      element("line", { class: "grid", x1: x.at(tick), x2: x.at(tick), y1: MARGIN.top, y2: base }),
      element("text", { x: x.at(tick), y: base + 16, "text-anchor": "middle" }, String(Number((100 * tick).toPrecision(2)))),
    ]),
    element("line", { class: "edge", x1: MARGIN.left, x2: width - MARGIN.right, y1: base, y2: base }),
    element("text", { class: "axis-label", x: (MARGIN.left + width - MARGIN.right) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, label));
}

function yAxis(y, width) {
  return element("g", { class: "axis" },
    y.ticks.map((tick) => [
      element("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y.at(tick), y2: y.at(tick) }),
      element("text", { x: MARGIN.left - 6, y: y.at(tick) + 4, "text-anchor": "end" }, tickText(tick)),
    ]),
    element("line", { class: "edge", x1: MARGIN.left, x2: MARGIN.left, y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }));
}

const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";

/** 0.001 -> "10⁻³", 0.002 -> "2·10⁻³", 0.5 -> "0.5". */
function tickText(tick) {
  if (tick >= 0.01) return String(Number(tick.toPrecision(2)));
  const [digit, power] = tick.toExponential(0).split("e-");
  const raised = `10⁻${[...power].map((one) => SUPERSCRIPTS[one]).join("")}`;
  return digit === "1" ? raised : `${digit}·${raised}`;
}

function marker({ value, loss }, x, y, isRising) {
  const [across, up] = [x.clamp(x.at(value)), y.clamp(y.at(loss))];
  // a falling curve leaves room above on its right and below on its left, a rising one above on its left
  const place = isRising ? [across - 10, Math.max(up - 10, 12), "end"]
    : across > x.to - 64 ? [across - 10, Math.min(up + 20, HEIGHT - MARGIN.bottom - 6), "end"] : [across + 10, Math.max(up - 10, 12), "start"];
  return element("g", { class: "chosen" },
    element("line", { x1: across, x2: across, y1: up, y2: HEIGHT - MARGIN.bottom }), element("line", { x1: MARGIN.left, x2: across, y1: up, y2: up }),
    element("circle", { cx: across, cy: up, r: 6 }),
    element("text", { x: place[0], y: place[1], "text-anchor": place[2] }, small(loss)));
}
