// What the slider moves over: the stored front of a run, and plans that are asked for exactly.

import { getJson, path, postJson } from "./api.js";

export const STEPS = 400;
const POWER = 2.5;
const POINTS = 60;
const SAMPLES = 24;
const TIMED = 13;
const LEAST_ERROR = 1e-5;

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

/** The exact architecture for a budget under options. */
export function askPlan(run, budget, options, { positions = false, signal } = {}) {
  const channels = channelsOf(options);
  const body = { budget, ...constraintsOf(options), ...(channels ? { channels } : {}), positions };
  return postJson(path("runs", run, "plan"), body, { signal });
}

/** Seconds of a forward pass with these counts, and of the original's, from the run's table of a device. */
export async function askSeconds(run, device, counts, options, signal) {
  const body = { budget: `latency=100000s@${device}`, ...constraintsOf(options), channels: counts };
  const plan = await postJson(path("runs", run, "plan"), body, { signal });
  return { seconds: plan.predicted_seconds, original: plan.original_seconds };
}

/** A front of the network as the service has it stored. */
export function loadFront(run, quantity, options, signal) {
  const query = new URLSearchParams({ quantity, points: POINTS, curves: true, round_to: options.round_to, min_channels: options.min_channels });
  for (const layer of options.leave) query.append("leave", layer);
  return getJson(`${path("runs", run, "front")}?${query}`, { signal });
}

const byValue = (one, other) => one.value - other.value;

/** Points of a front over a cost: {value, costs, loss, counts, seconds}, by rising value. */
export function pointsOf(front) {
  return front.points.map((point) => ({
    value: point.fraction, costs: point.costs, loss: point.predicted_loss, counts: point.counts, seconds: null,
  })).sort(byValue);
}

/** Points over the maximum error: the service is asked for some plans, two at a time. */
export async function sampleErrors(run, front, options, signal) {
  const curves = front.groups.map((group) => group.held_out_errors).filter(Boolean);
  const highest = Math.min(1, Math.max(...curves.map((curve) => curve[1] ?? 0)));
  const lowest = Math.max(LEAST_ERROR, Math.min(...curves.map((curve) => curve.at(-2)).filter((error) => error > 0), highest / 10));
  const values = Array.from({ length: SAMPLES }, (_, index) => rounded(lowest * (highest / lowest) ** (index / (SAMPLES - 1)), Math.ceil));
  const points = [];
  const work = async () => {
    for (let value = values.pop(); value !== undefined; value = values.pop()) {
      const plan = await askPlan(run, budgetText("max-error", value), options, { signal });
      points.push({ value, costs: plan.costs, loss: plan.predicted_loss, counts: countsOf(plan), seconds: null });
    }
  };
  await Promise.all([work(), work()]);
  return points.sort(byValue);
}

export const countsOf = (plan) => Object.fromEntries(plan.groups.map((group) => [group.name, group.kept]));

/** Seconds of all points from those of some: a table of latencies bends little between them. */
export async function timePoints(run, device, points, groups, options, signal) {
  const free = groups.filter((group) => group.whole === null).map((group) => group.name);
  const chosen = [...new Set(Array.from({ length: TIMED }, (_, index) => Math.round(((points.length - 1) * index) / (TIMED - 1))))];
  let before = null;
  for (const index of chosen) {
    const counts = Object.fromEntries(free.map((name) => [name, points[index].counts[name]]));
    const { seconds } = await askSeconds(run, device, counts, options, signal);
    points[index].seconds = seconds;
    for (let between = (before ?? index) + 1; between < index; between += 1) {
      const share = (between - before) / (index - before);
      points[between].seconds = points[before].seconds * (1 - share) + seconds * share;
    }
    before = index;
  }
}

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
