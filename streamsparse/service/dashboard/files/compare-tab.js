// Two checkpoints side by side: figures, and channels kept in every group.

import { getJson, path } from "./api.js";
import { element } from "./dom.js";
import { bytes, count, fixedPercent, percent, seconds, small, time } from "./format.js";
import { runAddress } from "./runs-page.js";

export async function compareTab(run, one, other) {
  const views = await Promise.all([one, other].map((name) => getJson(path("runs", run.id, "checkpoints", name))));
  const node = element("div", {},
    element("p", {}, element("a", { href: runAddress(run.id, "checkpoints") }, "All checkpoints")),
    element("h2", {}, `${one} and ${other}`), figures(views),
    element("h2", {}, "Channels kept, group by group"), groups(views));
  return { node };
}

/** Rows: label, value of a view, text, and how the difference reads: as a ratio, in points, or not at all. */
const ROWS = [
  ["Budget", (view) => view.budget, (value) => value ?? "counts by hand"],
  ["Written", (view) => view.created, time],
  ["Parameters", (view) => view.costs?.parameters, count, "ratio"],
  ["MACs, one image", (view) => view.costs?.macs, count, "ratio"],
  ["Size of the tensors", (view) => view.costs?.bytes, bytes, "ratio"],
  ["Files", (view) => view.files.reduce((sum, file) => sum + file.bytes, 0), bytes, "ratio"],
  ["Accuracy", (view) => view.evaluation?.comparison?.pruned_accuracy, fixedPercent, "points"],
  ["Agreement with the original", (view) => view.evaluation?.comparison?.agreement, fixedPercent, "points"],
  ["KL to the original, nats per image", (view) => view.evaluation?.comparison?.divergence, small, "ratio"],
  ["Seconds per batch of one", (view) => view.evaluation?.latency?.pruned_seconds?.[0], seconds, "ratio"],
  ["Held-out error, worst layer", (view) => Math.max(...Object.values(view.held_out_errors), -1), (value) => (value < 0 ? "–" : percent(value))],
];

function figures(views) {
  const rows = ROWS.map(([label, of, text, kind]) => {
    const [first, second] = views.map((view) => of(view) ?? null);
    return element("tr", {}, element("th", { scope: "row" }, label), ...[first, second].map((value) => element("td", { class: "number" }, text(value))),
      element("td", { class: "number" }, difference(first, second, kind)));
  });
  const evaluated = views.every((view) => view.evaluation);
  return [element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Figures side by side" },
    element("table", { class: "compare" }, element("thead", {}, element("tr", {}, element("td"), views.map((view) => element("th", { scope: "col", class: "number" }, view.name)), element("th", { scope: "col", class: "number" }, "Second to first"))),
      element("tbody", {}, rows))),
  evaluated ? null : element("p", { class: "muted" }, "Accuracy and KL are there once a job of kind “evaluate” has run for the checkpoint: see the tab Jobs.")];
}

function difference(first, second, kind) {
  if (first === null || second === null || !kind) return "";
  if (kind === "points") return `${second >= first ? "+" : "−"}${Math.abs(100 * (second - first)).toFixed(2)} points`;
  return first === 0 ? "" : `× ${Number((second / first).toPrecision(3))}`;
}

function groups([one, other]) {
  const largest = Math.max(...Object.values(one.original_sizes), 1);
  const rows = Object.entries(one.original_sizes).map(([group, size]) => {
    const kept = [one, other].map((view) => view.kept[group] ?? size);
    const bars = kept.map((now, index) => bar(now, size, largest, index, [one, other][index].name));
    return element("li", {}, element("span", { class: "group-name" }, group), element("span", { class: "pair-of-bars" }, bars));
  });
  const legend = [one, other].map((view, index) => element("span", {}, swatch(index), view.name));
  return [element("p", { class: "legend", "aria-hidden": "true" }, legend), element("ol", { class: "network compared" }, rows)];
}

const swatch = (index) => element("span", { class: `kept-bar ${index ? "second" : "first"}`, "aria-hidden": "true" }, element("span", { class: "kept-part" }));

function bar(kept, size, largest, index, name) {
  const track = swatch(index);
  track.style.setProperty("--size", `${((100 * size) / largest).toFixed(2)}%`);
  track.style.setProperty("--kept", `${((100 * kept) / size).toFixed(2)}%`);
  return element("span", { class: "bar-row" }, track, element("span", { class: "unseen" }, `${name}: `), element("span", { class: "kept-count" }, `${count(kept)} of ${count(size)}`));
}
