// What the network becomes, in five figures: as the front says while the slider moves, then exactly.

import { element, setText } from "./dom.js";
import { bytes, count, lossUnit, percent, seconds, small } from "./format.js";

const WORTH = {
  rough: "From the stored front; the plan follows.",
  planned: "Planned; searching in full …",
  exact: "Exact, as it would be written.",
};

export class PlanFigures {
  constructor(original, lossKind, devices) {
    Object.assign(this, { original, lossKind });
    this.tiles = {
      parameters: tile("Parameters"), macs: tile("MACs, one image"), bytes: tile("Size of the tensors"),
      loss: tile("Predicted loss"), ...(devices.length ? { seconds: tile(`Latency on ${devices[0]}`) } : {}),
    };
    this.state = element("p", { class: "exactness" });
    this.node = element("div", {}, element("dl", { class: "tiles", "aria-busy": "false" }, Object.values(this.tiles).map((one) => one.node)), this.state);
  }

  /** `shown`: {costs, loss, seconds, originalSeconds}; `worth`: a key of WORTH. */
  show(shown, worth) {
    for (const [name, text] of [["parameters", count], ["macs", count], ["bytes", bytes]]) {
      const fraction = shown.costs[name] / this.original[name];
      this.tiles[name].show(text(shown.costs[name]), `${percent(fraction)} of ${text(this.original[name])}`, fraction);
    }
    this.tiles.loss.show(small(shown.loss), lossUnit(this.lossKind));
    if (this.tiles.seconds) {
      const known = Number.isFinite(shown.seconds) && shown.originalSeconds;
      this.tiles.seconds.show(seconds(shown.seconds), known ? `${percent(shown.seconds / shown.originalSeconds)} of ${seconds(shown.originalSeconds)}` : "not known yet",
        known ? shown.seconds / shown.originalSeconds : null);
    }
    this.mark(worth);
  }

  /** What the figures are worth: those of a point nearby, of a quick plan, or of what would be written. */
  mark(worth, text = WORTH[worth]) {
    this.node.classList.toggle("rough", worth === "rough");
    this.node.dataset.worth = worth;
    setText(this.state, text);
  }
}

/** The plan as one sentence, for those who listen. */
export const planSentence = (plan) =>
  `${count(plan.costs.parameters)} parameters, ${percent(plan.costs.parameters / plan.original_costs.parameters)}; ` +
  `${count(plan.costs.macs)} MACs; ${bytes(plan.costs.bytes)}; predicted loss ${small(plan.predicted_loss)} ${lossUnit(plan.loss_kind)}.`;

function tile(label) {
  const [value, detail, bar] = [element("dd", { class: "value" }), element("dd", { class: "detail" }), element("dd", { class: "left", "aria-hidden": "true" })];
  bar.hidden = true;
  const show = (figure, about, fraction = null) => {
    setText(value, figure);
    setText(detail, about);
    bar.hidden = fraction === null;
    if (fraction !== null) bar.style.setProperty("--left", `${(100 * Math.min(1, fraction)).toFixed(2)}%`);
  };
  return { node: element("div", { class: "tile" }, element("dt", {}, label), value, bar, detail), show };
}
