// The checkpoints of a run: what each keeps, how it did, its download; two of them can be compared.

import { getJson, path } from "./api.js";
import { downloadPanel } from "./checkpoint-parts.js";
import { button, element, fill } from "./dom.js";
import { bytes, count, fixedPercent, percent, small, time } from "./format.js";
import { emptyState, problemBox } from "./problems.js";
import { runAddress } from "./runs-page.js";

export async function checkpointsTab(run) {
  const node = element("div");
  const show = async () => {
    const { checkpoints } = await getJson(path("runs", run.id, "checkpoints"));
    const views = await Promise.all(checkpoints.map((one) => getJson(path("runs", run.id, "checkpoints", one.name))));
    views.sort((one, other) => (other.costs?.parameters ?? 0) - (one.costs?.parameters ?? 0));
    fill(node, views.length ? table(run, views) : nothing(run));
  };
  await show();
  const update = (_, changed) => {
    if (changed.some((job) => ["write", "checkpoint", "evaluate"].includes(job.kind))) show().catch((error) => fill(node, problemBox(error)));
  };
  return { node, update };
}

function nothing(run) {
  return emptyState("No checkpoints yet", "Choose a budget and write one; it just loads, without pickle.",
    element("p", {}, element("a", { href: runAddress(run.id, "budget") }, "To the budget")));
}

const HEADS = ["", "Checkpoint", "Parameters", "MACs", "Size", "Accuracy", "KL to the original", "Written"];

function table(run, views) {
  const chosen = [];
  const compare = button("Compare two", () => { location.hash = runAddress(run.id, "compare", ...chosen); }, { class: "primary", disabled: true });
  const note = element("span", { class: "muted", role: "status" }, views.length < 2 ? "Write another one to compare." : "Choose two.");
  const boxes = [];
  const choose = (box) => {
    if (box.checked) chosen.push(box.value);
    else chosen.splice(chosen.indexOf(box.value), 1);
    if (chosen.length > 2) {
      const oldest = chosen.shift();
      boxes.find((one) => one.value === oldest).checked = false;
    }
    compare.disabled = chosen.length !== 2;
    note.textContent = chosen.length === 2 ? `${chosen[0]} and ${chosen[1]}` : "Choose two.";
  };
  const details = element("div");
  const rows = views.map((view) => {
    const box = element("input", { type: "checkbox", value: view.name, "aria-label": `Compare ${view.name}`, on: { change: () => choose(box) } });
    boxes.push(box);
    const open = button(view.name, () => fill(details, downloadPanel(view)), { class: "linklike", "aria-label": `${view.name}: download` });
    return element("tr", {}, element("td", { class: "tick" }, box), element("th", { scope: "row" }, open, element("small", {}, view.budget ?? "counts by hand")), cells(view));
  });
  if (views.length === 1) fill(details, downloadPanel(views[0]));
  return element("div", {},
    element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Checkpoints" },
      element("table", {}, element("thead", {}, element("tr", {}, HEADS.map((head, index) => element("th", { scope: "col", class: index > 1 && index < 7 ? "number" : null }, head || element("span", { class: "unseen" }, "Compare"))))),
        element("tbody", {}, rows))),
    element("div", { class: "actions" }, compare, note), details);
}

function cells(view) {
  const told = view.evaluation?.comparison;
  const share = (cost) => (view.costs && view.original_costs ? element("small", {}, percent(view.costs[cost] / view.original_costs[cost])) : null);
  const number = (...children) => element("td", { class: "number" }, children);
  return [
    number(count(view.costs?.parameters), share("parameters")), number(count(view.costs?.macs), share("macs")), number(bytes(view.costs?.bytes ?? null), share("bytes")),
    number(fixedPercent(told?.pruned_accuracy), told ? element("small", {}, `original ${fixedPercent(told.original_accuracy)}`) : element("small", {}, "not evaluated")),
    number(told ? small(told.divergence) : "–", told ? element("small", {}, "nats per image") : null),
    element("td", {}, time(view.created)),
  ];
}
