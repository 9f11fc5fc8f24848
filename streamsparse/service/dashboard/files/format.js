// Numbers, sizes and times for people. One locale, as everywhere in streamsparse, so that copies can be compared.

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

export const count = (value) => (value === null || value === undefined ? "–" : whole.format(value));

/** 0.0123 -> "1.23 %"; three digits that matter. */
export function percent(fraction) {
  if (fraction === null || fraction === undefined) return "–";
  const value = 100 * fraction;
  if (value === 0) return "0 %";
  if (Math.abs(value) < 0.001) return `${value.toExponential(1)} %`;
  return `${Number(value.toPrecision(3))} %`;
}

export const fixedPercent = (fraction, digits = 2) =>
  fraction === null || fraction === undefined ? "–" : `${(100 * fraction).toFixed(digits)} %`;

/** 0.001234 -> "0.00123"; for losses, which have no natural size. */
export function small(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  return Math.abs(value) < 1e-4 ? value.toExponential(2) : String(Number(value.toPrecision(3)));
}

/** 315200000 -> "315 M"; for MACs and parameters where room is short. */
export function short(value) {
  for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= size) return `${Number((value / size).toPrecision(3))} ${unit}`;
  }
  return whole.format(value);
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  let [size, unit] = [value, "B"];
  for (const next of ["KiB", "MiB", "GiB", "TiB"]) {
    if (size < 1024) break;
    [size, unit] = [size / 1024, next];
  }
  return unit === "B" ? `${value} B` : `${size.toPrecision(3)} ${unit}`;
}

/** 75 -> "1 min 15 s"; 0.00034 -> "0.34 ms". */
export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 1e-3) return `${Number((1e6 * value).toPrecision(3))} µs`;
  if (value < 1) return `${Number((1e3 * value).toPrecision(3))} ms`;
  if (value < 60) return `${Number(value.toPrecision(2))} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
  return `${Math.floor(value / 3600)} h ${Math.round((value % 3600) / 60)} min`;
}

export const rate = (perSecond, unit) =>
  perSecond === null ? "" : `${Number(perSecond.toPrecision(3))} ${unit}/s`;

/** A moment of the server in the reader's own time. */
export function time(text) {
  if (!text) return "–";
  const moment = new Date(text);
  return Number.isNaN(moment.valueOf()) ? text : moment.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}

const LOSSES = {
  divergence: "nats per image",
  "squared difference": "squared difference of the outputs",
  error: "sum of relative errors",
};

/** The unit of a predicted loss. */
export const lossUnit = (kind) => LOSSES[kind] ?? kind;

/** [0, 1, 2, 5] -> "0–2, 5". */
export function ranges(positions) {
  const parts = [];
  for (const position of positions) {
    const last = parts.at(-1);
    if (last && last[1] === position - 1) last[1] = position;
    else parts.push([position, position]);
  }
  return parts.map(([from, to]) => (from === to ? `${from}` : to === from + 1 ? `${from}, ${to}` : `${from}–${to}`)).join(", ");
}

/** "0-2, 5" -> [0, 1, 2, 5]; throws what to type instead. */
export function parseRanges(text, size) {
  const found = new Set();
  for (const part of text.split(/[\s,;]+/).filter(Boolean)) {
    const match = /^(\d+)(?:[-–](\d+))?$/.exec(part);
    const [from, to] = match ? [Number(match[1]), Number(match[2] ?? match[1])] : [1, 0];
    if (from > to || to >= size) throw new RangeError(`“${part}”: give positions from 0 to ${size - 1}, such as 0-3, 7`);
    for (let position = from; position <= to; position += 1) found.add(position);
  }
  return [...found].sort((one, other) => one - other);
}
