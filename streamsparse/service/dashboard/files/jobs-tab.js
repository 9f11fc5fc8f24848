// Jobs of a run, and a form for every kind that the API takes.

import { path, submit } from "./api.js";
import { announce, element, field, fill } from "./dom.js";
import { KINDS } from "./job-parts.js";
import { FORMS } from "./job-forms.js";
import { jobList } from "./jobs-page.js";
import { problemBox } from "./problems.js";
import { may, service } from "./session.js";
import { noteJob } from "./watch.js";

export async function jobsTab(run) {
  const list = jobList(run.id);
  const [about, allowed] = [await service(), await may("submit")];
  const node = element("div", {}, list.node, allowed ? submitForm(run, about)
    : element("p", { class: "muted" }, "Your token may look, not submit: it lacks the scope “submit”."));
  return { node, dispose: list.dispose };
}

function submitForm(run, about) {
  const kinds = Object.keys(FORMS).filter((kind) => about.kinds.includes(kind));
  const kind = element("select", { name: "kind", on: { change: () => show() } }, kinds.map((one) => element("option", { value: one }, KINDS[one] ?? one)));
  const [fields, trouble, text] = [element("div", { class: "fields" }), element("div"), element("p", { class: "muted" })];
  let read = () => ({});
  const show = () => {
    const form = FORMS[kind.value](run, about);
    fill(fields, form.fields);
    text.textContent = form.text;
    read = form.read;
    fill(trouble);
  };
  const form = element("form", { class: "submit-job" }, element("h2", {}, "Submit a job"), field("Kind", kind), text, fields, trouble,
    element("div", { class: "actions" }, element("button", { type: "submit", class: "primary" }, "Submit")));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      noteJob(await submit(path("runs", run.id, "jobs"), { kind: kind.value, parameters: read(form) }));
      fill(trouble);
      announce("The job is queued.");
      scrollTo({ top: 0 });
    } catch (error) {
      fill(trouble, problemBox(error));
    }
  });
  show();
  return form;
}
