// A checkpoint to take away: its files and the archive of all of them, with sizes and digests.

import { path, ticketed, token } from "./api.js";
import { element, fill } from "./dom.js";
import { bytes, count, percent } from "./format.js";
import { problemBox } from "./problems.js";
import { runAddress } from "./runs-page.js";

/** A plain link where there are no tokens; else one that fetches a ticket for this one download when it is pressed. */
function downloadLink(label, address, name, trouble) {
  const link = element("a", { href: address, download: name, class: "download" }, label);
  link.addEventListener("click", async (event) => {
    if (!token.get() || link.dataset.ready) return;
    event.preventDefault();
    try {
      const once = element("a", { href: await ticketed(address), download: name, hidden: true });
      document.body.append(once);
      once.click();
      once.remove();
    } catch (error) {
      fill(trouble, problemBox(error));
    }
  });
  return link;
}

const digest = (text) => element("span", { class: "digest-line" }, "SHA-256 ", text ? element("code", { class: "digest" }, text) : "not known here");

export function downloadPanel(view) {
  const base = (...parts) => path("runs", view.run, "checkpoints", view.name, ...parts);
  const trouble = element("div");
  const item = (file, label, address, more = "") => element("li", {}, downloadLink(label, address, file.name, trouble),
    element("span", { class: "muted" }, ` ${bytes(file.bytes)} (${count(file.bytes)} bytes)${more}`), digest(file.sha256));
  const archive = view.archive ? item(view.archive, `Download ${view.archive.name}`, base("archive"), ", all files") : null;
  const files = view.files.map((file) => item(file, file.name, base("files", file.name)));
  return element("section", { class: "downloads", "aria-label": `Download ${view.name}` },
    element("h3", {}, element("a", { href: runAddress(view.run, "checkpoints") }, view.name)),
    element("p", { class: "muted" }, `${count(view.costs?.parameters)} parameters`, view.sparsity === null ? "" : `, ${percent(1 - view.sparsity)} of the original`),
    element("ul", {}, archive, files), trouble,
    element("p", { class: "muted" }, "Resumable: ", element("code", {}, `streamsparse download ${view.run}/${view.name} --server ${location.origin} --out DIRECTORY`)));
}
