// A curve without axes, as small as a word.

import { svg } from "../dom.js";

const WIDTH = 120;
const HEIGHT = 32;

/** Draws values as a line; null where there is too little to draw. */
export function sparkline(values, label) {
  const known = values.filter((value) => value !== null && Number.isFinite(value));
  if (known.length < 2) return null;
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const x = (index) => 2 + ((WIDTH - 4) * index) / (known.length - 1);
  const y = (value) => 3 + (HEIGHT - 6) * (high > low ? (high - value) / (high - low) : 0.5);
  const points = known
    .map((value, index) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`)
    .join(" ");
  return svg(
    "svg",
    {
      class: "spark",
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      role: "img",
      "aria-label": label,
      preserveAspectRatio: "none",
    },
    svg("polygon", { points: `2,${HEIGHT} ${points} ${WIDTH - 2},${HEIGHT}` }),
    svg("polyline", { points, fill: "none", "vector-effect": "non-scaling-stroke" }),
  );
}
