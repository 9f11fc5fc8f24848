"use strict";
// Runs before the first paint, so that a page in a chosen theme does not flash in the other.
(() => {
  try {
    const chosen = localStorage.getItem("streamsparse-theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch {
    // storage may be forbidden; then the system's theme holds
  }
})();
