// All jobs, and one job: progress, what it said, what it found, its log.

import { getJson, path, send } from "./api.js";
import { KeyedList, announce, element, fill, setText } from "./dom.js";
import { seconds, time } from "./format.js";
import { KINDS, jobActions, jobCard, jobSubject, progressBars, stateChip } from "./job-parts.js";
import { emptyState, problemBox } from "./problems.js";
import { followEvents, isActive, knownJob, knownJobs, noteJob, watchJobs } from "./watch.js";

const LOG_MILLISECONDS = 2500;

const MOST_OF_A_RUN = 8;

/** A list of jobs that stays up to date: all (`run` null), or the latest of a run and those that are active. */
export function jobList(run = null) {
  const [list, empty] = [element("div", { class: "jobs" }), element("div")];
  const more = element("p", {}, element("a", { href: "#/jobs" }, "All jobs"));
  const rows = new KeyedList(list, (job) => job.id, (job) => jobCard(job, { showRun: run === null }));
  fill(empty, emptyState("No jobs yet",
    run === null ? "Jobs are submitted from a run's page, by the API, or by streamsparse.client." : "Submit one below: every stage of a run is a job."));
  const stop = watchJobs(() => {
    const own = knownJobs().filter((job) => run === null || job.run === run);
    const shown = own.filter((job, place) => run === null || place < MOST_OF_A_RUN || isActive(job));
    rows.show(shown);
    more.hidden = shown.length === own.length;
    empty.hidden = own.length > 0;
  });
  return { node: element("div", {}, empty, list, more), dispose: stop };
}

export function jobsPage() {
  const list = jobList();
  return { title: "Jobs", node: element("div", {}, element("h1", {}, "Jobs"),
    element("p", { class: "lede" }, "Jobs of one run are done one after the other. They survive a restart of the service and go on from what was committed."),
    list.node), dispose: list.dispose };
}

export async function jobPage(id) {
  if (!knownJob(id)) noteJob(await getJson(path("jobs", id)));
  const job = knownJob(id);
  followEvents(id);
  const bars = progressBars();
  const parts = Object.fromEntries(["state", "facts", "actions", "trouble", "said", "result"].map((name) => [name, element("div", { class: name })]));
  const log = element("pre", { class: "log", tabindex: "0", "aria-label": "Log" });
  const node = element("div", {},
    element("p", { class: "eyebrow" }, element("a", { href: `#/runs/${encodeURIComponent(job.run)}` }, job.run), ` · job ${id}`),
    element("h1", {}, KINDS[job.kind] ?? job.kind), element("p", { class: "lede" }, jobSubject(job)),
    parts.state, parts.trouble, element("h2", {}, "Progress"), bars.node, parts.actions, parts.facts, parts.result,
    element("h2", {}, "What it said"), parts.said, element("h2", {}, "Log"), log);
  let last = null;
  const show = () => {
    const now = knownJob(id);
    bars.update(now);
    showSaid(parts.said, now);
    const signature = JSON.stringify([now.state, now.reason, now.finished, now.attempts]);
    if (signature === last) return;
    if (last !== null) announce(`The job is ${now.state}.`);
    last = signature;
    fill(parts.state, stateChip(now.state), now.reason ? ` ${now.reason}` : "");
    fill(parts.actions, jobActions(now, parts.actions));
    fill(parts.trouble, now.error ? problemBox({ ...now.error, message: now.error.title }) : null);
    fill(parts.facts, facts(now));
    fill(parts.result, now.result ? resultOf(now) : null);
  };
  const stop = watchJobs(show);
  const timer = setInterval(() => isActive(knownJob(id)) && readLog(id, log), LOG_MILLISECONDS);
  const stopLog = watchJobs((changed) => changed.some((one) => one.id === id) && readLog(id, log));
  readLog(id, log);
  return { title: `${KINDS[job.kind]} ${job.run}`, node, dispose: () => { stop(); stopLog(); clearInterval(timer); } };
}

async function readLog(id, log) {
  try {
    const text = await (await send("GET", path("jobs", id, "log"))).text();
    const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
    setText(log, text || "Nothing was written to standard error.");
    if (atEnd) log.scrollTop = log.scrollHeight;
  } catch (error) {
    setText(log, error.message);
  }
}

function facts(job) {
  const duration = job.started && job.finished ? (new Date(job.finished) - new Date(job.started)) / 1000 : null;
  const rows = [
    ["Submitted", `${time(job.created)} by ${job.submitted_by}`], ["Begun", job.started ? time(job.started) : null],
    ["Took", duration === null ? null : seconds(duration)], ["Attempts", String(job.attempts)],
    ["Next attempt", job.next_attempt ? time(job.next_attempt) : null],
  ];
  return element("dl", { class: "facts-list" }, rows.filter(([, value]) => value).map(([label, value]) =>
    [element("dt", {}, label), element("dd", {}, value)]));
}

function resultOf(job) {
  const made = job.kind === "checkpoint" || job.kind === "write";
  const run = `#/runs/${encodeURIComponent(job.run)}`;
  const link = made ? element("p", {}, element("a", { href: `${run}/checkpoints` }, "To the checkpoints")) :
    job.kind === "report" ? element("p", {}, element("a", { href: `${run}/report` }, "To the report")) : null;
  return [element("h2", {}, "What it found"), link,
    element("details", {}, element("summary", {}, "Result as JSON"),
      element("pre", { class: "log", tabindex: "0" }, JSON.stringify(job.result, null, 2)))];
}

const SAID = {
  notice: (event) => event.message,
  reused: (event) => `kept from before: ${event.message}`,
  finished: (event) => `done in ${seconds(event.seconds)}`,
};

/** Notices and ends of stages, in order. */
function showSaid(place, job) {
  const said = (job.events ?? []).filter((event) => SAID[event.type]);
  if (place.childElementCount && Number(place.dataset.shown) === said.length) return;
  place.dataset.shown = String(said.length);
  fill(place, said.length
    ? element("ul", { class: "said" }, said.map((event) => element("li", {}, element("strong", {}, event.stage), ` ${SAID[event.type](event)}`)))
    : element("p", { class: "muted" }, "Nothing so far."));
}
