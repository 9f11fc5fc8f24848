// All runs: what each holds, how far it is, and what works on it now.

import { getJson, path } from "./api.js";
import { KeyedList, element, fill, setText } from "./dom.js";
import { bytes, count, time } from "./format.js";
import { progressBars, stateChip } from "./job-parts.js";
import { command, emptyState, problemBox } from "./problems.js";
import { isActive, knownJobs, watchJobs } from "./watch.js";

const REFRESH_MILLISECONDS = 10_000;
const STAGES = ["capture", "accumulate", "solve", "weights", "write"];
export const runAddress = (name, ...more) => `#/runs/${[name, ...more].map(encodeURIComponent).join("/")}`;

/** Stages as steps; `states` is missing, begun, incomplete or complete by stage. */
export function stageSteps(states) {
  return element("ol", { class: "steps" }, STAGES.map((stage) => {
    const state = states[stage] ?? "missing";
    const mark = { missing: "○", begun: "◐", incomplete: "◐", complete: "●" }[state];
    return element("li", { class: state }, element("span", { "aria-hidden": "true" }, mark), ` ${stage}`,
      element("span", { class: "unseen" }, ` ${state}`));
  }));
}

export async function runsPage() {
  const [list, empty, trouble] = [element("div", { class: "runs" }), element("div"), element("div")];
  const rows = new KeyedList(list, (run) => run.id, runCard);
  const details = new Details();
  let runs = [];
  const show = () => {
    rows.show(runs.map((run) => ({ ...run, jobs: knownJobs().filter((job) => job.run === run.id && isActive(job)), details: details.of(run) })));
    empty.hidden = runs.length > 0;
  };
  const load = async () => {
    try {
      ({ runs } = await getJson(path("runs")));
      fill(trouble);
    } catch (error) {
      fill(trouble, problemBox(error));
    }
    show();
    details.load(runs, show);
  };
  fill(empty, noRuns());
  await load();
  const timer = setInterval(() => document.hidden || load(), REFRESH_MILLISECONDS);
  const stop = watchJobs((changed) => (changed.length ? load() : show()));
  const node = element("div", {}, element("h1", {}, "Runs"),
    element("p", { class: "lede" }, "A run holds a captured network, its statistics, the best support for every number of channels, and the checkpoints cut from them."),
    trouble, empty, list);
  return { title: "Runs", node, dispose: () => { clearInterval(timer); stop(); details.stop(); } };
}

function noRuns() {
  return emptyState("No runs yet", "Capture a network's activations into the directory that this service serves; the run appears here by itself.",
    command("streamsparse capture ROOT/my-model --model torchvision:resnet18 --weights weights.safetensors --data imagefolder:/data/train"),
    element("p", { class: "muted" }, "In a hurry? This makes a small run in about a minute: ", element("code", {}, "streamsparse demo --run ROOT/demo")));
}

/** Sizes and exact states, which only a run's own page knows: read one run at a time, again once it has changed. */
class Details {
  constructor() {
    Object.assign(this, { found: new Map(), busy: false, stopped: false });
  }

  stop() {
    this.stopped = true;
  }

  of(run) {
    return this.found.get(run.id)?.view ?? null;
  }

  async load(runs, show) {
    if (this.busy) return;
    this.busy = true;
    for (const run of runs.filter((one) => one.state === "readable").slice(0, 50)) {
      const signature = JSON.stringify([run.stages, run.checkpoints, run.active_jobs]);
      if (this.stopped) return;
      if (this.found.get(run.id)?.signature === signature && !run.active_jobs) continue;
      try {
        this.found.set(run.id, { signature, view: await getJson(path("runs", run.id)) });
        show();
      } catch {
        // the list says already what cannot be read
      }
    }
    this.busy = false;
  }
}

function runCard(run) {
  const parts = Object.fromEntries(["about", "steps", "work", "figures"].map((name) => [name, element("div", { class: name })]));
  const title = element("h2", {}, element("a", { href: runAddress(run.id) }, run.id));
  const node = element("article", { class: "run", "aria-label": run.id }, title, parts.about, parts.steps, parts.figures, parts.work);
  const works = new KeyedList(parts.work, (job) => job.id, workRow);
  let last = null;
  const update = (now) => {
    works.show(now.jobs);
    const { jobs, ...rest } = now;
    const signature = JSON.stringify(rest);
    if (signature === last) return;
    last = signature;
    fill(parts.about, now.problem ? problemBox({ ...now.problem, message: now.problem.title })
      : [now.model, now.images === null ? null : `${count(now.images)} images`, time(now.created), now.registered ? "registered" : null].filter(Boolean).join(" · "));
    const states = now.details ? Object.fromEntries(now.details.stages.map((stage) => [stage.stage, stage.state])) : { ...now.stages, write: now.checkpoints.length ? "complete" : "missing" };
    fill(parts.steps, now.state === "readable" ? stageSteps(states) : null);
    fill(parts.figures, now.state === "readable" ? figures(now) : null);
  };
  update(run);
  return { node, update };
}

function figures(run) {
  const view = run.details;
  const size = view?.stages.reduce((sum, stage) => sum + stage.bytes, 0);
  return element("dl", { class: "pairs" },
    pair("Parameters", view ? count(view.costs.parameters) : "…"),
    pair("Solved for", view?.solution?.budget ?? (view ? (view.solution ? "counts by hand" : "–") : "…")),
    pair("Checkpoints", String(run.checkpoints.length)), pair("Stored", view ? bytes(size) : "…"));
}

const pair = (label, value) => element("div", {}, element("dt", {}, label), element("dd", {}, value));

function workRow(job) {
  const [state, bars, reason] = [element("span"), progressBars(), element("span", { class: "muted" })];
  const node = element("div", { class: "work-row" }, element("a", { href: `#/jobs/${job.id}` }, job.kind), " ", state, " ", reason, bars.node);
  const update = (now) => {
    fill(state, stateChip(now.state));
    setText(reason, now.reason ?? "");
    bars.update(now);
  };
  update(job);
  return { node, update };
}
