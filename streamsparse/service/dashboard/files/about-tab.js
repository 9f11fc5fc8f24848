// What a run is: stages in words, the manifest, what verification found, and its deletion in two steps.

import { path, postJson, send } from "./api.js";
import { askInDialog } from "./dialogs.js";
import { button, element, field, fill } from "./dom.js";
import { bytes, count, time } from "./format.js";
import { problemBox } from "./problems.js";
import { may } from "./session.js";

export async function aboutTab(run) {
  const node = element("div");
  const show = async (now) => fill(node, stages(now), facts(now), verification(now), (await may("admin")) ? deletion(now) : null);
  await show(run);
  return { node, update: show };
}

function stages(run) {
  const rows = run.stages.map((stage) => element("tr", {}, element("th", { scope: "row" }, stage.stage), element("td", {}, stage.state),
    element("td", { class: "number" }, bytes(stage.bytes)), element("td", {}, stage.detail)));
  const heads = ["Stage", "State", "Stored", "What"].map((head, index) => element("th", { scope: "col", class: index === 2 ? "number" : null }, head));
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Stages" },
    element("table", {}, element("thead", {}, element("tr", {}, heads)), element("tbody", {}, rows)));
}

function facts(run) {
  const { model, data, versions, created, sink } = run.manifest;
  const rows = [
    ["Model", model.class], ["Built by", model.spec], ["Weights, SHA-256", model.weights_sha256], ["Data", data.spec], ["Images", data.images && count(data.images)],
    ["Image shape", data.shape?.join(" × ")], ["Seed", data.seed], ["Kept as", sink], ["Captured", time(created)],
    ["Versions", Object.entries(versions ?? {}).map(([name, version]) => `${name} ${version}`).join(", ")],
  ];
  return [element("h2", {}, "Captured"), element("dl", { class: "facts-list" }, rows.filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([label, value]) => [element("dt", {}, label), element("dd", {}, String(value))])),
  element("details", {}, element("summary", {}, "Manifest as JSON"), element("pre", { class: "log", tabindex: "0" }, JSON.stringify(run.manifest, null, 2)))];
}

function verification(run) {
  const found = run.verification;
  const text = found === null ? "Not verified yet: a job of kind “verify” reads and checks everything."
    : `${time(found.finished)}: ${found.problems.length ? `${found.problems.length} problems` : "no problem found"}.`;
  return [element("h2", {}, "Verification"), element("p", {}, text),
    found?.problems.length ? element("pre", { class: "log", tabindex: "0" }, JSON.stringify(found.problems, null, 2)) : null];
}

function deletion(run) {
  const trouble = element("div");
  const press = button("Delete this run …", async () => {
    try {
      const first = await postJson(path("runs", run.id, "deletion"));
      if (await confirmDeletion(run, first)) location.hash = "#/";
    } catch (error) {
      fill(trouble, problemBox(error));
    }
  }, { class: "danger" });
  return element("section", { class: "danger-zone", "aria-label": "Deletion" }, element("h2", {}, "Deletion"),
    element("p", {}, "In two steps; there is no way back."), press, trouble);
}

function confirmDeletion(run, first) {
  const typed = element("input", { type: "text", name: "typed", required: true, autocomplete: "off", spellcheck: "false" });
  return askInDialog({
    title: `Delete ${run.id}?`,
    body: [element("p", {}, first.consequence), field(`Type ${run.id} to confirm`, typed)],
    confirm: "Delete",
    danger: true,
    submit: async () => {
      if (typed.value !== run.id) throw Object.assign(new Error("The name does not match."), { expected: run.id, got: typed.value });
      await send("DELETE", path("runs", run.id), { more: { "Deletion-Token": first.token } });
      return true;
    },
  });
}
