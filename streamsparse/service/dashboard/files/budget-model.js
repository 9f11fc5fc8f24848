// What the slider moves over: the stored front of a run, and plans that are asked for exactly.

import { getJson, path, postJson } from "./api.js";

export const STEPS = 400;
const POWER = 2.5;
const POINTS = 60;

export const QUANTITIES = {
  params: { label: "Parameters", of: "of the parameters", cost: "parameters", noun: "parameters" },
  macs: { label: "MACs", of: "of the multiply-accumulates", cost: "macs", noun: "MACs" },
  "max-error": { label: "Maximum error", of: "held-out error of a group, at most", cost: null, noun: "maximum error" },
};

/** Options of a plan as they are sent; empty ones are left out. */
export function constraintsOf(options) {
  const lists = (name) => Object.fromEntries([...options.groups].filter(([, own]) => own[name]?.length).map(([group, own]) => [group, own[name]]));
  return { round_to: options.round_to, min_channels: options.min_channels, leave: options.leave, keep: lists("keep"), drop: lists("drop") };
}

/** Counts by hand, by group, or null. */
export function channelsOf(options) {
  const found = [...options.groups].filter(([, own]) => own.count).map(([group, own]) => [group, own.count]);
  return found.length ? Object.fromEntries(found) : null;
}

export const newOptions = () => ({ round_to: 1, min_channels: 1, leave: [], groups: new Map() });

export const budgetText = (quantity, value) => `${quantity}=${value}`;

/** What a budget gives under options; `full` searches as long as a job does, so that it is what would be written. */
export function askPlan(run, budget, options, { full = false, positions = false, device = null, signal } = {}) {
  const channels = channelsOf(options);
  const body = { budget, ...constraintsOf(options), ...(channels ? { channels } : {}), ...(device ? { device } : {}), full, positions };
  return postJson(path("runs", run, "plan"), body, { signal });
}

/** A front of the network as the service has it stored; with the seconds of a device if one is named. */
export function loadFront(run, quantity, options, { device = null, signal } = {}) {
  const query = new URLSearchParams({ quantity, points: POINTS, curves: true, round_to: options.round_to, min_channels: options.min_channels });
  for (const layer of options.leave) query.append("leave", layer);
  if (device) query.set("device", device);
  return getJson(`${path("runs", run, "front")}?${query}`, { signal });
}

/** Points of a front: {value, costs, loss, counts, seconds}, by rising value. */
export function pointsOf(front) {
  const valueOf = (point) => (front.quantity === "max-error" ? Number(point.budget.split("=")[1]) : point.fraction);
  const points = front.points.map((point) => ({
    value: valueOf(point), costs: point.costs, loss: point.predicted_loss, counts: point.counts, seconds: point.predicted_seconds,
  }));
  points.sort((one, other) => one.value - other.value || one.loss - other.loss);
  return points.filter((point, index) => point.value > 0 && point.value !== points[index - 1]?.value);
}

export const countsOf = (plan) => Object.fromEntries(plan.groups.map((group) => [group.name, group.kept]));

/** The point that a value allows: the last one that is not above it. */
export function pointAt(points, value) {
  let found = points[0];
  for (const point of points) {
    if (point.value > value * (1 + 1e-9)) break;
    found = point;
  }
  return found;
}

/**
 * From positions of the slider to values. Errors go by their logarithm. Costs go by a power, so that half of the
 * slider is what keeps most of the network's accuracy and the rest still reaches the smallest network there is.
 */
export class Scale {
  constructor(quantity, points) {
    this.highest = points.at(-1).value;
    this.lowest = Math.min(rounded(points[0].value, Math.ceil), this.highest);
    this.isEven = quantity !== "max-error";
  }

  value(position) {
    if (position >= STEPS) return this.highest;
    if (position <= 0) return this.lowest;
    const share = position / STEPS;
    const { lowest, highest } = this;
    return rounded(this.isEven ? lowest + (highest - lowest) * share ** POWER : lowest * (highest / lowest) ** share, Math.round);
  }

  position(value) {
    const { lowest, highest } = this;
    if (highest === lowest) return STEPS;
    const share = this.isEven ? Math.max(0, (value - lowest) / (highest - lowest)) ** (1 / POWER) : Math.log(value / lowest) / Math.log(highest / lowest);
    return Math.round(STEPS * Math.min(1, Math.max(0, share)));
  }

  clamp(value) {
    return Math.min(this.highest, Math.max(this.lowest, value));
  }
}

/** Three digits, so that a budget reads well. */
export function rounded(value, round) {
  const unit = 10 ** (Math.floor(Math.log10(value)) - 2);
  return Number((round(value / unit - (round === Math.ceil ? 1e-9 : 0)) * unit).toPrecision(3));
}
