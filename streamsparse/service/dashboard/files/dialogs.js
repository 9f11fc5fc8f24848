// Modal dialogs: the browser's own <dialog> keeps focus inside, closes with Escape and gives focus back.

import { button, element, fill, newId } from "./dom.js";
import { problemBox } from "./problems.js";

/**
 * Show a form in a dialog. `submit(form)` runs when it is confirmed; what it throws is shown and the dialog stays.
 * Resolves to what `submit` returned, or null if the dialog was closed.
 */
export function askInDialog({ title, body, confirm, submit, danger = false }) {
  return new Promise((resolve) => {
    const heading = newId("dialog");
    const trouble = element("div", {});
    const go = element("button", { type: "submit", class: danger ? "danger" : "primary" }, confirm);
    const form = element(
      "form", { method: "dialog" },
      element("h2", { id: heading, tabindex: "-1" }, title), body, trouble,
      element("div", { class: "actions" }, button("Close", () => dialog.close(), { class: "quiet" }), go),
    );
    const dialog = element("dialog", { "aria-labelledby": heading }, form);
    let result = null;
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      go.disabled = true;
      try {
        result = await submit(form);
        dialog.close();
      } catch (error) {
        fill(trouble, problemBox(error));
      } finally {
        go.disabled = false;
      }
    });
    dialog.addEventListener("close", () => { dialog.remove(); resolve(result); });
    document.body.append(dialog);
    dialog.showModal();
  });
}
