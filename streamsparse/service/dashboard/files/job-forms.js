// Parameters of every kind of job, as fields; `read(form)` makes the request's `parameters`.

import { element, field } from "./dom.js";
import { formatsOf, writeFields } from "./write-checkpoint.js";

const input = (name, attributes) => element("input", { name, ...attributes });
const number = (name, value, attributes = {}) => input(name, { type: "number", value: String(value), step: 1, min: 1, ...attributes });
const choice = (name, values) => element("select", { name }, values.map((value) => element("option", { value }, value)));
const value = (form, name) => form.elements[name].value;
const whole = (form, name) => Math.round(form.elements[name].valueAsNumber);

const roundFields = () => [
  field("Round counts to multiples of", number("round_to", 1)),
  field("Least channels of a group", input("min_channels", { type: "number", value: "1", min: 0.01, step: "any" }), "Below 1: a fraction."),
];
const roundOf = (form) => ({ round_to: whole(form, "round_to"), min_channels: form.elements.min_channels.valueAsNumber });

const checkpointField = (run) => field("Checkpoint", choice("name", run.checkpoints.length ? run.checkpoints : ["pruned"]));

function dataField(about) {
  const empty = about.data.length === 0;
  return field("Data", element("select", { name: "data", required: true, disabled: empty }, about.data.map((name) => element("option", { value: name }, name))),
    empty ? "This server offers no data set: it is started with --data NAME=SPEC." : "Data sets that the server was started with.");
}

const nothing = (text) => () => ({ text, fields: [], read: () => ({}) });

export const FORMS = {
  accumulate: () => ({
    text: "Reduces the captured activations to sufficient statistics; statistics that are there already are kept.",
    fields: [field("Folds", number("folds", 5, { min: 2, max: 50 }), "By sample, for held-out errors."),
      field("Products in", choice("products", ["float32", "float64", "tf32", "bfloat16"])),
      field("Memory limit, MiB per worker", number("memory", "", { min: 1 }), "Empty: none.")],
    read: (form) => ({ folds: whole(form, "folds"), products: value(form, "products"),
      memory_limit_bytes: value(form, "memory") ? whole(form, "memory") * 2 ** 20 : null }),
  }),
  fronts: () => ({ text: "Finds the best support for every number of channels of every group, and decides nothing.", fields: roundFields(), read: roundOf }),
  solve: () => ({
    text: "Chooses the channels that stay within a budget and re-estimates the weights behind them.",
    fields: [field("Budget", input("budget", { type: "text", value: "params=0.2", required: true, spellcheck: "false" }),
      "params=X, macs=X, bytes=X (a fraction or absolute), sparsity=X, latency=X@DEVICE, max-loss=X, max-error=X"), roundFields()],
    read: (form) => ({ budget: value(form, "budget"), ...roundOf(form) }),
  }),
  write: () => ({ text: "Cuts the channels of the run's present solution out and writes a checkpoint.", fields: writeFields("pruned"),
    read: (form) => ({ name: value(form, "name"), formats: formatsOf(form) }) }),
  evaluate: (run, about) => ({
    text: "Compares the original with a checkpoint: accuracy, agreement, KL divergence.",
    fields: [checkpointField(run), dataField(about), field("Images per batch", number("batch_images", 500)),
      element("label", { class: "check" }, input("latency", { type: "checkbox" }), " time both models' forward passes too")],
    read: (form) => ({ name: value(form, "name"), data: value(form, "data"), batch_images: whole(form, "batch_images"), latency: form.elements.latency.checked }),
  }),
  sensitivity: (_, about) => ({
    text: "Measures what cutting each group alone does to the model's output; budgets then minimise the predicted divergence.",
    fields: [dataField(about), field("Images", number("images", "", { placeholder: "as many as cost little" })), field("By", choice("by", ["kl", "fisher"])), field("Images per batch", number("batch_images", 64))],
    read: (form) => ({ data: value(form, "data"), images: whole(form, "images") || null, by: value(form, "by"), batch_images: whole(form, "batch_images") }),
  }),
  report: nothing("Writes the run's HTML report."),
  verify: nothing("Reads and checks everything that the run holds, by its digests."),
};
