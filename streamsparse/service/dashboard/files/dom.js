// Building the page from data. Texts of the server only ever become text nodes and attributes, never markup.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "g", "path", "line", "circle", "rect", "text", "title", "desc", "polyline"]);

/**
 * An element. Attributes: `class`, `on` (listeners by event), `style` (CSS properties by name), `data`, properties
 * such as `value`, `checked`, `disabled`; true sets an empty attribute, false, null and undefined set none.
 */
export function element(tag, attributes = {}, ...children) {
  const node = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) setAttribute(node, name, value);
  node.append(...flat(children));
  return node;
}

function setAttribute(node, name, value) {
  if (name === "on") {
    for (const [type, listener] of Object.entries(value)) node.addEventListener(type, listener);
  } else if (name === "style") {
    for (const [property, own] of Object.entries(value)) node.style.setProperty(property, own);
  } else if (name === "data") {
    Object.assign(node.dataset, value);
  } else if (name === "value" || name === "checked" || name === "indeterminate") {
    node[name] = value;
  } else if (value === true) {
    node.setAttribute(name, "");
  } else if (value !== false && value !== null && value !== undefined) {
    node.setAttribute(name, String(value));
  }
}

function flat(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
}

/** Replace what a node holds. */
export function fill(node, ...children) {
  node.replaceChildren(...flat(children));
  return node;
}

/** Set text only where it changes: screen readers read live regions again whenever they are touched. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * A list whose rows stay while it changes, so that focus and open parts survive.
 * `create(item)` gives {node, update(item)}; rows are told apart by `key(item)`.
 */
export class KeyedList {
  constructor(container, key, create) {
    Object.assign(this, { container, key, create, rows: new Map() });
  }

  show(items) {
    const wanted = new Map(items.map((item) => [String(this.key(item)), item]));
    for (const [key, row] of this.rows) {
      if (wanted.has(key)) continue;
      row.node.remove();
      row.dispose?.();
      this.rows.delete(key);
    }
    let place = this.container.firstChild;
    for (const [key, item] of wanted) {
      let row = this.rows.get(key);
      if (row) row.update?.(item);
      else this.rows.set(key, (row = this.create(item)));
      if (row.node === place) place = place.nextSibling;
      else this.container.insertBefore(row.node, place);
    }
  }

  dispose() {
    this.show([]);
  }
}

let numbered = 0;

/** An id for labels and descriptions, new each time. */
export const newId = (name) => `${name}-${++numbered}`;

/** A labelled field: `control` gets an id; the hint is read with it. */
export function field(label, control, hint = null) {
  control.id ||= newId("field");
  const about = hint === null ? null : element("small", { id: `${control.id}-hint` }, hint);
  if (about) control.setAttribute("aria-describedby", about.id);
  return element("div", { class: "field" }, element("label", { for: control.id }, label), control, about);
}

export const button = (label, onClick, attributes = {}) =>
  element("button", { type: "button", ...attributes, on: { click: onClick } }, label);

const polite = () => document.getElementById("polite");
const assertive = () => document.getElementById("assertive");

/** Say something to those who listen to the page rather than look at it. */
export function announce(text, { urgent = false } = {}) {
  setText(urgent ? assertive() : polite(), text);
}
