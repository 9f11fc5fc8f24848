// The network as bars: one row per group of channels, its length the channels of the original, filled what is kept.

import { element, setText } from "./dom.js";
import { count, percent } from "./format.js";
import { GroupPanel } from "./group-panel.js";

export class NetworkBars {
  /** `onOptions()` is called when an option of a group has changed, `onOpen()` when a group is opened. */
  constructor(groups, options, { onOptions, onOpen }) {
    const largest = Math.max(1, ...groups.map((group) => group.size));
    this.rows = new Map(groups.map((group) => [group.name, new Row(group, group.size / largest, options, { onOptions, onOpen })]));
    const list = element("ol", { class: "network" }, [...this.rows.values()].map((row) => row.node));
    this.node = element("section", { "aria-label": "The network, group by group" }, list);
  }

  /** Counts by group; `planned` are the exact plan's groups, or null. */
  show(counts, planned = null) {
    const exact = new Map((planned ?? []).map((group) => [group.name, group]));
    for (const [name, row] of this.rows) row.show(counts[name] ?? row.group.size, exact.get(name) ?? null);
  }

  /** Whether a group is open whose kept positions should be shown. */
  get wantsPositions() {
    return [...this.rows.values()].some((row) => row.panel !== null && !row.panel.node.hidden);
  }
}

class Row {
  constructor(group, share, options, { onOptions, onOpen }) {
    Object.assign(this, { group, options, onOptions, onOpen, panel: null, last: null });
    this.bar = element("span", { class: "kept-bar", "aria-hidden": "true" }, element("span", { class: "kept-part" }));
    this.bar.style.setProperty("--size", `${(100 * share).toFixed(2)}%`);
    this.kept = element("span", { class: "kept-count" });
    this.press = element("button", { type: "button", class: "group-row", "aria-expanded": "false", on: { click: () => this.toggle() } },
      element("span", { class: "group-name" }, group.name), this.bar, this.kept);
    this.node = element("li", { class: group.whole === null ? null : "whole", title: group.whole }, this.press);
  }

  toggle() {
    if (this.panel === null) {
      this.panel = new GroupPanel(this.group, this.options, () => { this.mark(); this.onOptions(); });
      this.node.append(this.panel.node);
      this.panel.node.hidden = true;
    }
    const open = this.panel.node.hidden;
    this.panel.node.hidden = !open;
    this.press.setAttribute("aria-expanded", String(open));
    this.panel.show(this.last.kept, this.last.planned);
    if (open) this.onOpen();
  }

  mark() {
    this.node.classList.toggle("by-hand", this.options.groups.has(this.group.name));
  }

  show(kept, planned) {
    this.last = { kept, planned };
    const { size, name, whole } = this.group;
    this.bar.style.setProperty("--kept", `${((100 * kept) / size).toFixed(2)}%`);
    setText(this.kept, `${count(kept)} of ${count(size)}`);
    const error = planned?.predicted_error ?? this.group.held_out_errors?.[kept] ?? null;
    const why = whole === null ? (error === null ? "" : `, error ${percent(error)}`) : `, stays whole: ${whole}`;
    this.press.setAttribute("aria-label", `${name}: ${kept} of ${size} channels kept${why}`);
    this.mark();
    if (this.panel && !this.panel.node.hidden) this.panel.show(kept, planned);
  }
}
