// Curves as data: what the server sent, what comes after it, smoothing, a common x axis.

const MOST_POINTS = 6000; // kept here per curve; the server sends about 2,000

/** Curves of one run by tag: {step: [], value: []}. */
export class Series {
  constructor() {
    this.tags = new Map();
  }

  /** Takes over what the server answered. */
  load(tags) {
    this.tags = new Map(
      Object.entries(tags).map(([tag, { step, value }]) => [
        tag,
        { step: [...step], value: [...value] },
      ]),
    );
  }

  /** Adds rows of metrics. A row that lies before the end says that the run went back to it. */
  append(rows) {
    for (const { step, ...values } of rows) {
      for (const [tag, value] of Object.entries(values)) {
        if (tag === "t" || (value !== null && typeof value !== "number")) continue;
        const curve = this.tags.get(tag) ?? { step: [], value: [] };
        this.tags.set(tag, curve);
        while (curve.step.length && curve.step.at(-1) >= step) {
          curve.step.pop();
          curve.value.pop();
        }
        curve.step.push(step);
        curve.value.push(value);
        if (curve.step.length > MOST_POINTS) thin(curve);
      }
    }
  }

  /** A curve, empty where the run has none. */
  get(tag) {
    return this.tags.get(tag) ?? { step: [], value: [] };
  }

  has(tag) {
    return this.tags.has(tag);
  }

  /** The newest finite value. */
  last(tag) {
    return this.get(tag).value.findLast((value) => value !== null) ?? null;
  }

  /** The lowest value. */
  best(tag) {
    return this.get(tag).value.reduce(
      (low, value) => (value !== null && (low === null || value < low) ? value : low),
      null,
    );
  }
}

/** An exponential moving average; `amount` in [0, 1), corrected for the start. */
export function smooth(values, amount) {
  if (!amount) return values;
  let mean = 0;
  let weight = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = amount * mean + (1 - amount) * value;
    weight = amount * weight + (1 - amount);
    return mean / weight;
  });
}

/** Several curves over the union of their steps: [steps, values, values, …], gaps undefined. */
export function join(curves) {
  const steps = [...new Set(curves.flatMap((curve) => curve.step))].sort((a, b) => a - b);
  const places = new Map(steps.map((step, index) => [step, index]));
  const columns = curves.map((curve) => {
    const column = new Array(steps.length).fill(undefined);
    curve.step.forEach((step, index) => (column[places.get(step)] = curve.value[index]));
    return column;
  });
  return [steps, ...columns];
}

// Halves the older part of a curve by keeping the lowest and highest of each four values.
function thin(curve) {
  const until = Math.floor(curve.step.length / 2);
  const keep = [];
  for (let start = 0; start < until; start += 4) {
    const group = [...Array(Math.min(4, until - start)).keys()].map((offset) => start + offset);
    const byValue = (a, b) => (curve.value[a] ?? 0) - (curve.value[b] ?? 0);
    const sorted = [...group].sort(byValue);
    keep.push(...new Set([sorted[0], sorted.at(-1)].sort((a, b) => a - b)));
  }
  const rest = [...Array(curve.step.length - until).keys()].map((offset) => until + offset);
  const order = [...keep, ...rest];
  curve.step = order.map((index) => curve.step[index]);
  curve.value = order.map((index) => curve.value[index]);
}
