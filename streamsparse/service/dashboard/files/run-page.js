// A run: its stages, and a tab for everything that can be done with it.

import { getJson, path } from "./api.js";
import { aboutTab } from "./about-tab.js";
import { budgetTab } from "./budget-tab.js";
import { checkpointsTab } from "./checkpoints-tab.js";
import { compareTab } from "./compare-tab.js";
import { element, fill } from "./dom.js";
import { bytes, count } from "./format.js";
import { jobsTab } from "./jobs-tab.js";
import { reportTab } from "./report-tab.js";
import { runAddress, stageSteps } from "./runs-page.js";
import { watchJobs } from "./watch.js";

const TABS = { budget: "Budget", checkpoints: "Checkpoints", jobs: "Jobs", report: "Report", about: "About" };
const MAKERS = { budget: budgetTab, checkpoints: checkpointsTab, compare: compareTab, jobs: jobsTab, report: reportTab, about: aboutTab };

export async function runPage(name, [tab = "budget", ...rest]) {
  const run = await getJson(path("runs", name));
  const make = MAKERS[tab] ?? budgetTab;
  const [head, content] = [element("div"), element("div")];
  const made = await make(run, ...rest);
  fill(content, made.node);
  fill(head, header(run));
  const stop = watchJobs(async (changed) => {
    if (!changed.some((job) => job.run === name)) return;
    try {
      const fresh = await getJson(path("runs", name));
      fill(head, header(fresh));
      made.update?.(fresh, changed);
    } catch {
      // the next change tries again; what is shown was true a moment ago
    }
  });
  const node = element("div", { class: "run-page" }, head, tabs(name, tab), content);
  return { title: `${name} – ${TABS[tab] ?? tab}`, node, dispose: () => { stop(); made.dispose?.(); } };
}

function header(run) {
  const { model, data } = run.manifest;
  const states = Object.fromEntries(run.stages.map((stage) => [stage.stage, stage.state]));
  const stored = run.stages.reduce((sum, stage) => sum + stage.bytes, 0);
  return [
    element("p", { class: "eyebrow" }, element("a", { href: "#/" }, "Runs")),
    element("h1", {}, run.id),
    element("p", { class: "about-run" }, [model.class, data.images ? `${count(data.images)} images` : null,
      `${count(run.costs.parameters)} parameters`, `${bytes(stored)} stored`].filter(Boolean).join(" · ")),
    stageSteps(states),
  ];
}

function tabs(name, current) {
  const link = ([tab, label]) => element("a", {
    href: runAddress(name, tab), "aria-current": tab === current || (current === "compare" && tab === "checkpoints") ? "page" : null,
  }, label);
  return element("nav", { class: "tabs", "aria-label": `Parts of run ${name}` }, Object.entries(TABS).map(link));
}
