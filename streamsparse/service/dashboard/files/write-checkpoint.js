// From the chosen budget to a checkpoint: a name, a job, its progress, and the download.

import { getJson, path, submit } from "./api.js";
import { channelsOf, constraintsOf } from "./budget-model.js";
import { downloadPanel } from "./checkpoint-parts.js";
import { askInDialog } from "./dialogs.js";
import { announce, button, element, field, fill } from "./dom.js";
import { bytes, count, lossUnit, percent, small } from "./format.js";
import { jobCard } from "./job-parts.js";
import { problemBox } from "./problems.js";
import { may } from "./session.js";
import { knownJob, noteJob, watchJobs } from "./watch.js";

export const NAME_PATTERN = "[A-Za-z0-9][A-Za-z0-9._\\-]{0,99}";
const FORMATS = { safetensors: "safetensors (always there)", pt2: "pt2, torch.export", onnx: "ONNX" };

/** Fields of name and formats, for every place that writes. */
export function writeFields(name) {
  const formats = Object.entries(FORMATS).map(([format, label]) => element("label", { class: "check" },
    element("input", { type: "checkbox", name: "formats", value: format, checked: format === "safetensors", disabled: format === "safetensors" }), ` ${label}`));
  return [
    field("Name", element("input", { name: "name", type: "text", value: name, required: true, pattern: NAME_PATTERN, spellcheck: "false", autocomplete: "off" }),
      "Letters, digits, dot, dash, underscore. A checkpoint of the same name is replaced."),
    element("fieldset", { class: "plain" }, element("legend", {}, "Formats"), formats),
  ];
}

export const formatsOf = (form) => ["safetensors", ...[...form.elements.formats].filter((box) => box.checked && !box.disabled).map((box) => box.value)];

export class CheckpointWriter {
  /** `request()` gives {budget, options, plan} at the moment of the press. */
  constructor(run, request) {
    Object.assign(this, { run, request, job: null });
    this.press = button("Write checkpoint …", () => this.ask(), { class: "primary wide", disabled: true });
    this.place = element("div", { class: "written" });
    this.note = element("p", { class: "muted" });
    this.node = element("div", { class: "writer" }, this.press, this.note);
    this.allowed = true;
    may("submit").then((allowed) => {
      this.allowed = allowed;
      if (!allowed) this.note.textContent = "Your token may look, not submit: it lacks the scope “submit”.";
    }).catch(() => {});
    this.stop = () => {};
  }

  dispose() {
    this.stop();
  }

  setReady(ready) {
    this.press.disabled = !ready || !this.allowed;
  }

  update(run) {
    this.run = run;
  }

  async ask() {
    const { budget, options, plan } = this.request();
    const facts = `${count(plan.costs.parameters)} parameters (${percent(plan.costs.parameters / plan.original_costs.parameters)}), ${count(plan.costs.macs)} MACs, ` +
      `${bytes(plan.costs.bytes)}; predicted loss ${small(plan.predicted_loss)} ${lossUnit(plan.loss_kind)}.`;
    const job = await askInDialog({
      title: "Write a checkpoint",
      body: [element("p", {}, element("strong", {}, budget), ": ", facts), writeFields(budget.replace("=", "-")),
        element("p", { class: "muted" }, "A job re-estimates the weights behind the channels that stay and writes the checkpoint.")],
      confirm: "Write it",
      submit: (form) => {
        const channels = channelsOf(options);
        const body = { budget, ...constraintsOf(options), ...(channels ? { channels } : {}), name: form.elements.name.value, formats: formatsOf(form) };
        return submit(path("runs", this.run.id, "checkpoints"), body);
      },
    });
    if (job) this.watch(job);
  }

  watch(job) {
    this.stop();
    const card = jobCard(job);
    const [after, name] = [element("div"), job.parameters.name];
    fill(this.place, card.node, after);
    this.place.scrollIntoView({ block: "nearest" });
    noteJob(job);
    announce(`Writing checkpoint ${name}.`);
    let ended = false;
    this.stop = watchJobs(async () => {
      const now = knownJob(job.id) ?? job;
      card.update(now);
      if (now.state !== "succeeded" || ended || !now.result) return;
      ended = true;
      try {
        fill(after, downloadPanel(await getJson(path("runs", this.run.id, "checkpoints", name))));
        announce(`Checkpoint ${name} is written and can be downloaded.`);
      } catch (error) {
        fill(after, problemBox(error));
      }
    });
  }
}
