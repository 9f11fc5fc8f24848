// One group in detail: what is re-estimated behind it, which positions stay, how its error grows, and its options.

import { element, field, fill, newId, setText } from "./dom.js";
import { count, parseRanges, percent, ranges } from "./format.js";

const CELLS_PER_ROW = 64;

export class GroupPanel {
  /** Options of the group are kept in `options.groups`: {count, keep, drop}; `onChange()` after each change. */
  constructor(group, options, onChange) {
    Object.assign(this, { group, options, onChange });
    this.facts = element("dl", { class: "facts-list" });
    this.positions = element("div", { class: "positions" });
    this.trouble = element("p", { class: "field-error", role: "alert" });
    this.node = element("div", { class: "group-panel", role: "group", "aria-label": `Group ${group.name}` }, this.facts, this.positions,
      group.whole === null ? [this.fields(), this.trouble] : null);
  }

  own(change) {
    const { groups } = this.options;
    const now = { ...(groups.get(this.group.name) ?? {}), ...change };
    if (now.count || now.keep?.length || now.drop?.length) groups.set(this.group.name, now);
    else groups.delete(this.group.name);
    this.onChange();
  }

  fields() {
    const own = this.options.groups.get(this.group.name) ?? {};
    const { size } = this.group;
    const exactly = element("input", { type: "number", min: 1, max: size, step: 1, value: String(own.count ?? size), on: { change: () => choose() } });
    const how = element("select", { on: { change: () => choose() } },
      [["budget", "as the budget decides"], ["whole", `all ${count(size)}`], ["exactly", "exactly …"]].map(([value, label]) => element("option", { value }, label)));
    how.value = own.count === undefined ? "budget" : own.count === size ? "whole" : "exactly";
    const number = field("Exactly", exactly, `1 to ${count(size)}`);
    const choose = () => {
      number.hidden = how.value !== "exactly";
      const given = Math.min(size, Math.max(1, Math.round(exactly.valueAsNumber || size)));
      exactly.value = String(given);
      this.own({ count: { budget: undefined, whole: size, exactly: given }[how.value] });
    };
    number.hidden = how.value !== "exactly";
    return element("div", { class: "fields" }, field("Channels", how), number,
      this.list("keep", "Always keep", own.keep), this.list("drop", "Always drop", own.drop));
  }

  list(name, label, given = []) {
    const input = element("input", { type: "text", value: ranges(given), placeholder: "0-3, 7", spellcheck: "false", inputmode: "text", on: { change: () => {
      try {
        const positions = parseRanges(input.value, this.group.size);
        setText(this.trouble, "");
        input.removeAttribute("aria-invalid");
        this.own({ [name]: positions });
      } catch (error) {
        input.setAttribute("aria-invalid", "true");
        setText(this.trouble, error.message);
      }
    } } });
    return field(label, input, "Positions, counted from 0.");
  }

  show(kept, planned) {
    const { group } = this;
    const error = planned?.predicted_error ?? group.held_out_errors?.[kept] ?? null;
    const rows = [
      ["Stays whole", group.whole], ["Re-estimated", group.layers.join(", ") || "nothing"],
      ["Held-out error", error === null ? null : percent(error)], ["Found by", planned?.method && planned.method !== "trivial" ? planned.method : null],
    ];
    fill(this.facts, rows.filter(([, value]) => value).map(([label, value]) => [element("dt", {}, label), element("dd", {}, value)]));
    if (planned?.positions) fill(this.positions, positionGrid(group, planned.positions));
  }
}

/** A cell per channel, filled where it is kept; in words below. */
function positionGrid(group, positions) {
  const columns = Math.min(CELLS_PER_ROW, group.size);
  const rows = Math.ceil(group.size / columns);
  const id = newId("positions");
  const cells = (which) => which.map((position) => `M${position % columns},${Math.floor(position / columns)}h.8v.8h-.8z`).join("");
  const kept = new Set(positions);
  const dropped = Array.from({ length: group.size }, (_, position) => position).filter((position) => !kept.has(position));
  const text = `Kept positions: ${ranges(positions)}`;
  const svg = element("svg", { viewBox: `-.1 -.1 ${columns} ${rows}`, role: "img", "aria-labelledby": id },
    element("title", { id }, text), element("path", { class: "dropped", d: cells(dropped) }), element("path", { class: "kept", d: cells(positions) }));
  svg.style.setProperty("--columns", String(columns));
  return [svg, element("details", {}, element("summary", {}, "Positions in words"), element("p", { class: "muted" }, text))];
}
