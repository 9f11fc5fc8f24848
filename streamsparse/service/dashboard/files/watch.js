// What changes by itself: jobs and their progress. Polls the list, and follows the events of jobs that run.

import { getJson, path } from "./api.js";
import { followJob } from "./events.js";

export const ACTIVE = ["queued", "running", "waiting"];
export const isActive = (job) => ACTIVE.includes(job.state);

const BUSY_MILLISECONDS = 2000;
const IDLE_MILLISECONDS = 8000;
// A browser opens six connections to a server; streams must leave some for everything else.
const MOST_STREAMS = 3;

const jobs = new Map();
const listeners = new Set();
const streams = new Set(); // ids of jobs whose events are followed now
const seen = new Map(); // job -> number of the last event: a stream that is opened again goes on after it
let timer = 0;
let trouble = null;

/** All known jobs, the latest first. */
export const knownJobs = () => [...jobs.values()].sort((one, other) => other.created.localeCompare(one.created));
export const knownJob = (id) => jobs.get(id);

/** Call `listener(changed, error)` whenever jobs change; `changed` are those whose state did. Returns how to stop. */
export function watchJobs(listener) {
  listeners.add(listener);
  listener([], trouble);
  return () => listeners.delete(listener);
}

function tell(changed) {
  for (const listener of [...listeners]) listener(changed, trouble);
}

/** Look at the list of jobs now, and from now on. */
export async function refreshJobs() {
  clearTimeout(timer);
  let changed = [];
  try {
    const page = await getJson(`${path("jobs")}?limit=100`);
    changed = page.jobs.filter(take);
    trouble = null;
  } catch (error) {
    trouble = error;
  }
  follow();
  tell(changed);
  const busy = [...jobs.values()].some(isActive);
  clearTimeout(timer);
  timer = setTimeout(refreshJobs, busy ? BUSY_MILLISECONDS : IDLE_MILLISECONDS);
}

/** Know a job that an answer has shown. */
export function noteJob(job) {
  const changed = take(job);
  follow();
  tell(changed ? [job] : []);
  clearTimeout(timer);
  timer = setTimeout(refreshJobs, 400);
}

/** Keep what the list says; true if the state is another one than before. */
function take(job) {
  const before = jobs.get(job.id);
  const streamed = streams.has(job.id) && before?.state === job.state;
  const progress = streamed ? before.progress : job.progress; // events are ahead of the list
  jobs.set(job.id, { ...job, progress, events: before?.events ?? [] });
  return before !== undefined && before.state !== job.state;
}

function follow() {
  const wanted = [...jobs.values()].filter((job) => job.state === "running").slice(0, MOST_STREAMS);
  for (const job of wanted) followEvents(job.id);
}

/** Hear of everything that a job says, from its first event, whether it runs or has ended. */
export async function followEvents(id) {
  if (streams.has(id)) return;
  streams.add(id);
  try {
    await followJob(id, { onEvent: (event) => onEvent(id, event), after: seen.get(id) ?? 0 });
  } finally {
    streams.delete(id);
  }
}

function onEvent(id, event) {
  seen.set(id, event.number);
  const job = { ...jobs.get(id) };
  if (event.type !== "progress") job.events = [...job.events, event].slice(-200);
  if (event.type === "progress") job.progress = withStage(job.progress ?? [], event);
  if (event.type === "state" && event.state !== job.state) {
    clearTimeout(timer);
    timer = setTimeout(refreshJobs, 50); // the list has the result or the error too
  }
  jobs.set(id, job);
  tell([]);
}

function withStage(progress, event) {
  const own = progress.findIndex((stage) => stage.stage === event.stage);
  return own < 0 ? [...progress, event] : progress.with(own, event);
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(timer);
  else refreshJobs();
});
