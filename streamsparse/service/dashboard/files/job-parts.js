// How a job looks wherever it is shown: its state, its progress, and what can be done with it.

import { path, postJson } from "./api.js";
import { button, element, fill, setText } from "./dom.js";
import { count, rate, seconds, time } from "./format.js";
import { problemBox } from "./problems.js";
import { isActive, noteJob } from "./watch.js";

export const KINDS = {
  accumulate: "Accumulate statistics", fronts: "Find fronts", solve: "Solve", write: "Write the solution",
  checkpoint: "Write a checkpoint", report: "Make the report", evaluate: "Evaluate", sensitivity: "Measure sensitivities",
  verify: "Verify",
};
const MARKS = { queued: "○", running: "◐", waiting: "◷", succeeded: "✓", failed: "✕", cancelled: "–" };

/** State as a word with a mark; colour is never alone. */
export function stateChip(state) {
  const mark = element("span", { "aria-hidden": "true" }, MARKS[state] ?? "");
  return element("span", { class: `chip ${state}` }, mark, ` ${state}`);
}

/** What a job was asked for, in a few words. */
export function jobSubject(job) {
  const told = job.parameters;
  return [told.name, told.budget, told.data && `on ${told.data}`].filter(Boolean).join(" · ");
}

/** One bar per stage, with rate and time left; {node, update(job)}. */
export function progressBars() {
  const node = element("div", { class: "bars" });
  const rows = new Map();
  const update = (job) => {
    for (const stage of job.progress ?? []) {
      if (!rows.has(stage.stage)) {
        const row = newBar(stage.stage);
        rows.set(stage.stage, row);
        node.append(row.node);
      }
      rows.get(stage.stage).update(stage, job);
    }
  };
  return { node, update };
}

function newBar(stage) {
  const bar = element("progress", { "aria-label": stage });
  const [done, left] = [element("span", { class: "done" }), element("span", { class: "left-over" })];
  const node = element("div", { class: "bar" }, element("span", { class: "stage" }, stage), bar, done, left);
  const update = (now, job) => {
    const ended = now.finished || !isActive(job);
    if (now.total) [bar.max, bar.value] = [now.total, now.finished ? now.total : now.done];
    else if (ended) [bar.max, bar.value] = [1, now.finished ? 1 : 0];
    node.classList.toggle("finished", now.finished);
    setText(done, `${count(now.done)}${now.total ? ` of ${count(now.total)}` : ""} ${now.unit}`);
    const remaining = now.seconds_left === null ? "" : `${seconds(now.seconds_left)} left`;
    const speed = now.per_second ? rate(now.per_second, now.unit) : "";
    setText(left, now.finished ? "done" : ended ? "" : [speed, remaining].filter(Boolean).join(" · "));
  };
  return { node, update };
}

/** A card with a job's state, bars and buttons; {node, update(job)}. */
export function jobCard(job, { showRun = false } = {}) {
  const bars = progressBars();
  const [state, reason, actions] = [element("span"), element("p", { class: "reason" }), element("div", { class: "actions" })];
  const title = element("a", { href: `#/jobs/${job.id}`, class: "job-title" }, KINDS[job.kind] ?? job.kind);
  const about = [showRun ? job.run : null, jobSubject(job)].filter(Boolean).join(" · ");
  const head = element("div", { class: "job-head" }, state, title, element("span", { class: "muted grow" }, about),
    element("time", { class: "muted", datetime: job.created }, time(job.created)));
  const node = element("article", { class: "job", "aria-label": `${KINDS[job.kind] ?? job.kind} ${about}` }, head, bars.node, reason, actions);
  let last = null;
  const update = (now) => {
    bars.update(now);
    bars.node.hidden = !isActive(now);
    setText(reason, now.reason ?? now.error?.title ?? "");
    if (now.state === last) return;
    last = now.state;
    fill(state, stateChip(now.state));
    fill(actions, jobActions(now, actions));
  };
  update(job);
  return { node, update };
}

/** Cancel or retry, as the state allows. */
export function jobActions(job, place) {
  const act = (label, verb) =>
    button(label, async (event) => {
      event.target.disabled = true;
      try {
        noteJob(await postJson(path("jobs", job.id, verb)));
      } catch (error) {
        fill(place, problemBox(error));
      }
    });
  if (isActive(job)) {
    return [act("Cancel", "cancel"), job.state === "waiting" ? act("Try now", "retry") : null];
  }
  return job.state === "succeeded" ? [] : [act("Try again", "retry")];
}
