// Start: header, router, and the page that the address names.

//   #/                        runs
//   #/jobs, #/jobs/ID         jobs
//   #/runs/NAME[/TAB[/...]]   a run: budget, checkpoints, compare, jobs, report, about

import { element, fill } from "./dom.js";
import { jobPage, jobsPage } from "./jobs-page.js";
import { emptyState, problemBox } from "./problems.js";
import { runPage } from "./run-page.js";
import { runsPage } from "./runs-page.js";
import { startSession } from "./session.js";
import { isActive, knownJobs, refreshJobs, watchJobs } from "./watch.js";

const main = document.getElementById("main");
let shown = { dispose: () => {} };
let visits = 0;

function pageFor(parts) {
  if (parts.length === 0) return runsPage();
  if (parts[0] === "jobs" && parts.length === 1) return jobsPage();
  if (parts[0] === "jobs" && parts.length === 2) return jobPage(parts[1]);
  if (parts[0] === "runs" && parts.length >= 2) return runPage(parts[1], parts.slice(2));
  return { title: "Not found", node: emptyState("There is nothing here", "The address names no page of the dashboard.",
    element("p", {}, element("a", { href: "#/" }, "To the runs"))) };
}

async function navigate() {
  if (!location.hash.startsWith("#/") && location.hash !== "") return; // a link inside the page
  const visit = ++visits;
  const parts = location.hash.slice(2).split("/").filter(Boolean).map(decodeURIComponent);
  for (const link of document.querySelectorAll("[data-place]")) {
    const current = (parts[0] ?? "runs") === link.dataset.place;
    if (current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  let page;
  try {
    page = await pageFor(parts);
  } catch (error) {
    if (error.name === "AbortError") return;
    page = { title: "Trouble", node: problemBox(error, element("a", { href: "#/" }, "To the runs")) };
  }
  if (visit !== visits) {
    page.dispose?.();
    return;
  }
  shown.dispose?.();
  shown = page;
  fill(main, page.node);
  main.dataset.page = parts.join("/");
  document.title = `${page.title} · streamsparse`;
  if (visit > 1) {
    main.focus({ preventScroll: true });
    if (!page.keepsScroll) scrollTo(0, 0);
  }
}

function startTheme() {
  const root = document.documentElement;
  const press = document.getElementById("theme");
  const word = press.querySelector(".word");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const name = () => { word.textContent = isDark() ? "Light theme" : "Dark theme"; };
  press.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try {
      localStorage.setItem("streamsparse-theme", root.dataset.theme);
    } catch {
      // then it holds for this page alone
    }
    name();
  });
  system.addEventListener("change", name);
  name();
}

function startCount() {
  const badge = document.getElementById("active-jobs");
  watchJobs(() => {
    const active = knownJobs().filter(isActive).length;
    badge.hidden = active === 0;
    badge.textContent = String(active);
    badge.title = `${active} active`;
  });
}

startTheme();
startSession();
startCount();
addEventListener("hashchange", navigate);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
await refreshJobs();
await navigate();
