// The budget of a run: the slider, what it gives, and the checkpoint written for it.
//
//     slider ──at once──> point of the stored front ──> figures, bars, curve
//        └──debounced──> POST .../plan (the one before is aborted) ──> the same, planned
//              └──once it rests──> POST .../plan, searched in full ──> the same, as it would be written

import { BudgetSlider, generalOptions, quantitySwitch } from "./budget-controls.js";
import {
  QUANTITIES, Scale, askPlan, budgetText, channelsOf, countsOf, loadFront, newOptions, pointAt, pointsOf,
} from "./budget-model.js";
import { frontsAction, noFronts } from "./budget-missing.js";
import { announce, element, fill } from "./dom.js";
import { layerTable } from "./layer-table.js";
import { LossCurve } from "./loss-curve.js";
import { NetworkBars } from "./network-bars.js";
import { PlanFigures, planSentence } from "./plan-figures.js";
import { problemBox } from "./problems.js";
import { CheckpointWriter } from "./write-checkpoint.js";

const DEBOUNCE_MILLISECONDS = 120;
const REST_MILLISECONDS = 500;
const remembered = new Map(); // by run: what was chosen, for the way back from another tab

export async function budgetTab(run) {
  if (!remembered.has(run.id)) remembered.set(run.id, { quantity: "params", values: startValues(run), options: newOptions() });
  const page = new BudgetPage(run, remembered.get(run.id));
  await page.load();
  return { node: page.node, dispose: () => page.dispose(), update: (fresh, changed) => page.update(fresh, changed) };
}

/** Where the slider begins: at the budget of the present solution, or at a quarter. */
function startValues(run) {
  const values = { params: 0.25, macs: 0.5, "max-error": 0.01 };
  const [kind, limit] = (run.solution?.budget ?? "").split("=");
  if (kind in values && Number(limit) > 0 && Number(limit) <= 1) values[kind] = Number(limit);
  if (kind === "sparsity") values.params = Number((1 - Number(limit)).toPrecision(6));
  return values;
}

class BudgetPage {
  constructor(run, state) {
    Object.assign(this, { run, state, front: null, points: [], plan: null, device: null, pending: 0 });
    [this.loading, this.planning] = [new AbortController(), new AbortController()];
    this.slider = new BudgetSlider((value) => this.choose(value));
    this.curve = new LossCurve();
    this.writer = new CheckpointWriter(run, () => this.request());
    [this.tiles, this.network, this.layers, this.trouble] = Array.from({ length: 4 }, () => element("div"));
    const controls = element("section", { class: "controls", "aria-label": "Budget" },
      quantitySwitch(state.quantity, (quantity) => this.setQuantity(quantity)), this.slider.node,
      generalOptions(state.options, () => this.load()), this.trouble, this.tiles, this.writer.node);
    const picture = element("div", { class: "picture" }, this.writer.place,
      element("h2", {}, "Architecture"), element("p", { class: "lead" }, "Channels kept of every group, in order of execution. A bar is as long as the original's channels are many. Open a group for its options."),
      this.network, element("h2", {}, "Predicted loss"), this.curve.node, this.layers);
    this.content = element("div", { class: "budget" }, controls, picture);
    this.node = element("div", {}, this.content);
  }

  dispose() {
    clearTimeout(this.pending);
    this.loading.abort();
    this.planning.abort();
    this.curve.dispose();
    this.writer.dispose();
  }

  /** The stored front under the options; then the plan. */
  async load() {
    this.loading.abort();
    const { signal } = (this.loading = new AbortController());
    const { options, quantity } = this.state;
    try {
      let front = await loadFront(this.run.id, quantity, options, { device: this.device, signal });
      if (this.device === null && front.latency_devices.length) {
        [this.device] = front.latency_devices;
        front = await loadFront(this.run.id, quantity, options, { device: this.device, signal });
      }
      this.take(front, pointsOf(front));
    } catch (error) {
      if (error.name === "AbortError") return;
      if (this.front === null && error.error === "StageMissingError") fill(this.node, noFronts(this.run, error));
      else this.fail(error);
    }
  }

  take(front, points) {
    const before = JSON.stringify(this.front?.groups.map((group) => [group.name, group.whole]));
    const isFirst = this.front === null;
    Object.assign(this, { front, points });
    fill(this.node, this.content);
    if (before !== JSON.stringify(front.groups.map((group) => [group.name, group.whole]))) {
      this.bars = new NetworkBars(front.groups, this.state.options, { onOptions: () => this.ask(), onOpen: () => this.ask() });
      fill(this.network, this.bars.node);
    }
    if (isFirst) {
      this.figures = new PlanFigures(front.original_costs, front.loss_kind, front.latency_devices);
      fill(this.tiles, this.figures.node);
    }
    const { quantity, values } = this.state;
    this.slider.setScale(new Scale(quantity, points), quantity, front.original_costs);
    values[quantity] = this.slider.scale.clamp(values[quantity]);
    this.slider.show(values[quantity]);
    this.curve.setPoints(points, quantity, front.loss_kind);
    this.preview();
    this.ask(0);
  }

  setQuantity(quantity) {
    this.state.quantity = quantity;
    this.load();
  }

  choose(value) {
    this.state.values[this.state.quantity] = value;
    this.preview();
    this.ask();
  }

  get value() {
    return this.state.values[this.state.quantity];
  }

  /** What the stored front says, without asking anybody. */
  preview() {
    if (this.points.length === 0) return;
    const point = pointAt(this.points, this.value);
    const counts = { ...point.counts, ...(channelsOf(this.state.options) ?? {}) };
    this.plan = null;
    this.figures.show({ ...point, originalSeconds: this.originalSeconds }, "rough");
    this.bars.show(counts);
    this.curve.choose(point);
    this.writer.setReady(false);
  }

  /** The plan for what is chosen now, a moment after the last change. */
  ask(wait = DEBOUNCE_MILLISECONDS) {
    clearTimeout(this.pending);
    this.planning.abort();
    this.writer.setReady(false);
    this.figures.mark("rough", "Planning …");
    this.pending = setTimeout(() => this.askNow(), wait);
  }

  async askNow() {
    const { signal } = (this.planning = new AbortController());
    const budget = budgetText(this.state.quantity, this.value);
    try {
      const asked = { positions: this.bars.wantsPositions, device: this.device, signal };
      this.show(await askPlan(this.run.id, budget, this.state.options, asked), "planned");
      await new Promise((resolve) => { setTimeout(resolve, REST_MILLISECONDS); });
      if (signal.aborted) return;
      this.show(await askPlan(this.run.id, budget, this.state.options, { ...asked, full: true }), "exact");
    } catch (error) {
      if (error.name === "AbortError") return;
      this.fail(error);
    }
  }

  show(plan, worth) {
    this.plan = plan;
    this.originalSeconds = plan.original_seconds;
    fill(this.trouble);
    this.figures.show({ costs: plan.costs, loss: plan.predicted_loss, seconds: plan.predicted_seconds, originalSeconds: plan.original_seconds }, worth);
    this.bars.show(countsOf(plan), plan.groups);
    const { cost } = QUANTITIES[this.state.quantity];
    this.curve.choose({ value: cost ? plan.costs[cost] / plan.original_costs[cost] : this.value, loss: plan.predicted_loss });
    fill(this.layers, layerTable(plan.layers, this.layers.querySelector("details")?.open));
    this.writer.setReady(true);
    announce(planSentence(plan));
  }

  fail(error) {
    this.writer.setReady(false);
    this.figures?.mark("rough", "There is no plan for this; the figures are of another one.");
    const isMissing = error.error === "StageMissingError";
    fill(this.trouble, problemBox(error, isMissing ? frontsAction(this.run.id, this.state.options, this.trouble) : null));
  }

  /** What a checkpoint is asked for with: the budget and all options. */
  request() {
    return { budget: budgetText(this.state.quantity, this.value), options: this.state.options, plan: this.plan };
  }

  update(run, changed) {
    this.run = run;
    this.writer.update(run, changed);
    const finds = ["accumulate", "fronts", "solve", "sensitivity"];
    if (changed.some((job) => job.run === run.id && job.state === "succeeded" && finds.includes(job.kind))) this.load();
    else if (this.front === null) this.load();
  }
}
