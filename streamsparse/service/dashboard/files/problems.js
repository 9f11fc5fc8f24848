// Errors as the service tells them: what was expected, what was got, where, and what to do.

import { announce, element } from "./dom.js";

const FIELDS = [["expected", "Expected"], ["got", "Got"], ["where", "Where"]];

/** A box for a Problem, or for any other error; `actions` are buttons that help. */
export function problemBox(error, ...actions) {
  const details = FIELDS.filter(([name]) => error[name]).map(([name, label]) => [
    element("dt", {}, label), element("dd", {}, error[name]),
  ]);
  announce(`${error.message ?? error.title} ${error.remedy ?? ""}`, { urgent: true });
  return element(
    "div", { class: "problem" },
    element("p", { class: "problem-title" }, error.message ?? error.title ?? "Something failed."),
    details.length ? element("dl", {}, details) : null,
    error.remedy ? element("p", { class: "remedy" }, element("strong", {}, "What to do: "), error.remedy) : null,
    actions.length ? element("div", { class: "actions" }, actions) : null,
  );
}

/** An empty state that says what belongs here and how to get it. */
export function emptyState(title, text, ...more) {
  return element("div", { class: "empty" }, element("h3", {}, title), element("p", {}, text), more);
}

/** A command to copy. */
export const command = (text) => element("pre", { class: "command", tabindex: "0" }, element("code", {}, text));
