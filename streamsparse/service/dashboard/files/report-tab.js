// The run's report, in a frame of its own origin: it can run its few lines, and reach nothing.

import { path, ticketed } from "./api.js";
import { jobButton } from "./budget-missing.js";
import { element, fill } from "./dom.js";
import { emptyState, problemBox } from "./problems.js";

export async function reportTab(run) {
  const [node, place] = [element("div"), element("div")];
  const show = async (now) => {
    if (!now.has_report) {
      fill(node, emptyState("No report yet", "The report shows stages, conditioning, fronts, the chosen architecture and the evaluation, in one file that needs no network.",
        element("div", { class: "actions" }, jobButton(run.id, "Make the report", { kind: "report" }, place)), place));
      return;
    }
    try {
      const address = await ticketed(path("runs", run.id, "report"));
      fill(node,
        element("div", { class: "actions" }, element("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, "Open in a tab of its own"),
          jobButton(run.id, "Make it again", { kind: "report" }, place, { class: "quiet" })), place,
        element("iframe", { class: "report", title: `Report of ${run.id}`, src: address, sandbox: "allow-scripts", referrerpolicy: "no-referrer" }));
    } catch (error) {
      fill(node, problemBox(error));
    }
  };
  await show(run);
  const update = (fresh, changed) => {
    if (changed.some((job) => job.kind === "report" && job.state === "succeeded")) show(fresh);
  };
  return { node, update };
}
