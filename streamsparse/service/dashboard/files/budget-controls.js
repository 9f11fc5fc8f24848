// The controls of a budget: what is bounded, the slider, its exact value, and options for all groups.

import { QUANTITIES, STEPS } from "./budget-model.js";
import { element, field, newId, setText } from "./dom.js";
import { count, percent } from "./format.js";

/** A row of radio buttons; `onChange(quantity)`. */
export function quantitySwitch(chosen, onChange) {
  const name = newId("quantity");
  const options = Object.entries(QUANTITIES).map(([quantity, about]) => {
    const input = element("input", { type: "radio", name, value: quantity, checked: quantity === chosen, on: { change: () => onChange(quantity) } });
    return element("label", {}, input, element("span", {}, about.label));
  });
  return element("fieldset", { class: "switch" }, element("legend", {}, "Bound"), options);
}

/** The slider with its exact value beside it; `onInput(value)`. Its scale is set when the front is known. */
export class BudgetSlider {
  constructor(onInput) {
    this.scale = null;
    this.input = element("input", { type: "range", min: 0, max: STEPS, step: 1, id: newId("slider"), disabled: true, on: {
      input: () => this.move(this.scale.value(this.input.valueAsNumber), onInput),
    } });
    this.number = element("input", { type: "number", min: 0, step: "any", inputmode: "decimal", disabled: true, "aria-label": "Budget in percent", on: {
      change: () => this.number.value && this.move(this.scale.clamp(this.number.valueAsNumber / 100), onInput),
    } });
    this.absolute = element("span", { class: "absolute" });
    this.unit = element("span", { class: "muted" });
    [this.least, this.most] = [element("span"), element("span")];
    this.node = element("div", { class: "slider" },
      element("div", { class: "reading" }, element("label", { class: "unseen", for: this.input.id }, "Budget"),
        element("span", { class: "figure" }, this.number, element("span", { "aria-hidden": "true" }, "%")), this.unit, this.absolute),
      this.input, element("div", { class: "ends", "aria-hidden": "true" }, this.least, this.most));
  }

  move(value, onInput) {
    this.show(value);
    onInput(value);
  }

  setScale(scale, quantity, original) {
    Object.assign(this, { scale, quantity, original });
    this.input.disabled = this.number.disabled = false;
    setText(this.least, percent(scale.lowest));
    setText(this.most, percent(scale.highest));
    setText(this.unit, QUANTITIES[quantity].of);
  }

  show(value) {
    const { cost, noun } = QUANTITIES[this.quantity];
    this.value = value;
    this.input.value = String(this.scale.position(value));
    this.number.value = String(Number((100 * value).toPrecision(4)));
    const absolute = cost ? `≤ ${count(Math.floor(value * this.original[cost]))} of ${count(this.original[cost])}` : "";
    setText(this.absolute, absolute);
    this.input.style.setProperty("--done", `${(100 * this.scale.position(value)) / STEPS}%`);
    this.input.setAttribute("aria-valuetext", cost ? `${percent(value)} of the ${noun}, ${absolute}` : `${percent(value)} ${noun}`);
  }
}

/** Rounding and least counts of all groups; `onChange()` once `options` has changed. */
export function generalOptions(options, onChange) {
  const round = element("select", { on: { change: () => { options.round_to = Number(round.value); onChange(); } } },
    [1, 2, 4, 8, 16, 32, 64].map((multiple) => element("option", { value: String(multiple) }, multiple === 1 ? "any number" : `multiples of ${multiple}`)));
  round.value = String(options.round_to);
  const least = element("input", { type: "number", min: 0.01, step: "any", value: String(options.min_channels), on: { change: () => {
    const given = least.valueAsNumber;
    options.min_channels = given > 0 ? (given >= 1 ? Math.round(given) : given) : 1;
    least.value = String(options.min_channels);
    onChange();
  } } });
  const leave = element("input", { type: "text", spellcheck: "false", placeholder: "layer4.*, head", value: options.leave.join(", "), on: { change: () => {
    options.leave = leave.value.split(/[\s,]+/).filter(Boolean);
    onChange();
  } } });
  const changed = options.round_to > 1 || options.min_channels !== 1 || options.leave.length > 0;
  return element("details", { class: "options", open: changed }, element("summary", {}, "Options for all groups"),
    element("div", { class: "fields" },
      field("Round counts to", round, "Hardware likes multiples of 8."),
      field("Least channels", least, "Of every group; below 1: a fraction."),
      field("Layers to leave alone", leave, "* and ? match anything.")));
}
