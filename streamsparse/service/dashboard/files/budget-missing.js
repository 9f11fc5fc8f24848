// What stands where the slider would be until a run has fronts, and the jobs that find them.

import { path, submit } from "./api.js";
import { constraintsOf } from "./budget-model.js";
import { button, element, fill } from "./dom.js";
import { jobCard } from "./job-parts.js";
import { emptyState, problemBox } from "./problems.js";
import { knownJob, noteJob, watchJobs } from "./watch.js";

/** A button that submits a job and shows it in `place` while it runs. */
export function jobButton(run, label, body, place, attributes = { class: "primary" }) {
  return button(label, async (event) => {
    event.target.disabled = true;
    try {
      const job = await submit(path("runs", run, "jobs"), body);
      const card = jobCard(job);
      fill(place, card.node);
      const stop = watchJobs(() => {
        if (!place.isConnected) stop();
        else card.update(knownJob(job.id) ?? job);
      });
      noteJob(job);
    } catch (error) {
      event.target.disabled = false;
      fill(place, problemBox(error));
    }
  }, attributes);
}

/** Finds the fronts that lists of positions need; the plan is asked for again once they are there. */
export function frontsAction(run, options, place) {
  return jobButton(run, "Find these fronts", { kind: "fronts", parameters: constraintsOf(options) }, place);
}

export function noFronts(run, error) {
  const [place, states] = [element("div"), Object.fromEntries(run.stages.map((stage) => [stage.stage, stage.state]))];
  if (states.capture !== "complete") {
    return emptyState("The capture is not complete", "Run `streamsparse capture` again: it goes on where it stopped. Then the statistics can be accumulated.");
  }
  const isReduced = states.accumulate === "complete";
  const [label, body, text] = isReduced
    ? ["Find fronts", { kind: "fronts" }, "The statistics are there. Finding the best support for every number of channels takes seconds to minutes per group, once; after that the slider answers at once."]
    : ["Accumulate statistics", { kind: "accumulate" }, "The activations are captured. Reducing them to statistics comes next; after that the fronts can be found."];
  return emptyState(isReduced ? "No fronts yet" : "No statistics yet", text, element("p", { class: "muted" }, error.message),
    element("div", { class: "actions" }, jobButton(run.id, label, body, place)), place);
}
