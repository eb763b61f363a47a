// What the model learns while it reads, drawn as it happens. The upper line is the inner loss with
// the fast weights it was trained with, the lower one with those it has made while reading: the
// area between them is what reading has taught it.

import { chart } from "../charts.js";
import { h, put } from "../dom.js";
import { number, percent } from "../format.js";
import { t } from "../i18n.js";
import { smooth } from "../series.js";

const SMOOTHING = 0.75;
const NOTHING = 0.005; // a share too small to speak of
const MOST = 4000; // mini-batches drawn

/** The drawing; `add({position, initial, current})` per mini-batch. */
export function innerView(signal) {
  let points = { step: [], initial: [], current: [] };
  const plot = chart(
    {
      title: t("inner.title"),
      hint: t("inner.hint"),
      height: 170,
      sync: false,
      class: "inner",
      waiting: t("inner.waiting"),
      xLabel: t("inner.position"),
    },
    signal,
  );
  const gain = h("p", { class: "gain num", role: "status" });
  const element = h(
    "section",
    { class: "panel inner-panel", "aria-label": t("inner.title") },
    plot.element,
    gain,
  );
  function draw() {
    const initial = smooth(points.initial, SMOOTHING);
    const current = smooth(points.current, SMOOTHING);
    plot.draw([
      { label: t("inner.initial"), colour: "c2", dash: [6, 4], step: points.step, value: initial },
      {
        label: t("inner.current"),
        colour: "c1",
        step: points.step,
        value: current,
        width: 2.5,
        fillTo: 0,
        fill: "c3",
      },
    ]);
    put(gain, points.step.length > 1 && sentence(points));
  }
  function add({ position, initial, current }) {
    if (position <= points.step.at(-1)) clear(); // everything is read anew
    points.step.push(position);
    points.initial.push(initial);
    points.current.push(current);
    if (points.step.length > MOST) Object.values(points).forEach((column) => column.shift());
    draw();
  }
  function clear() {
    points = { step: [], initial: [], current: [] };
    draw();
  }
  draw();
  return { element, add, clear };
}

// Over the last quarter of what has been read: what it would be surprised by, and what it is.
function sentence({ step, initial, current }) {
  const from = Math.floor(0.75 * step.length);
  const mean = (values) =>
    values.slice(from).reduce((sum, value) => sum + value, 0) / (values.length - from);
  const share = 1 - mean(current) / mean(initial);
  const position = number(step.at(-1));
  if (Math.abs(share) < NOTHING) return t("inner.same", { position });
  const words = t(share > 0 ? "inner.gain" : "inner.no_gain", { position });
  return [h("b", {}, percent(Math.abs(share), 0)), " ", words];
}
