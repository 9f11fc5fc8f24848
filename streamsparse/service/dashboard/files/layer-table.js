// The plan layer by layer, exactly.

import { element } from "./dom.js";
import { count, percent } from "./format.js";

const number = (...children) => element("td", { class: "number" }, children);
const change = (after, before) => number(count(after), element("small", {}, `of ${count(before)}`));

export function layerTable(layers, open = false) {
  const heads = ["Layer", "Inputs", "Outputs", "Parameters", "MACs"];
  const rows = layers.map((layer) => element("tr", {}, element("th", { scope: "row" }, layer.layer),
    change(layer.inputs_kept, layer.inputs), change(layer.outputs_kept, layer.outputs),
    number(count(layer.parameters), element("small", {}, percent(layer.parameters / layer.original_parameters))),
    number(count(layer.macs), element("small", {}, percent(layer.macs / layer.original_macs)))));
  return element("details", { open }, element("summary", {}, "Layer by layer"),
    element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Layer by layer" },
      element("table", {}, element("thead", {}, element("tr", {}, heads.map((head, index) => element("th", { scope: "col", class: index ? "number" : null }, head)))),
        element("tbody", {}, rows))));
}
