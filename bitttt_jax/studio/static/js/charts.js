// Charts: uPlot in the colours of the page, with a common crosshair and a legend in HTML.

import uPlot from "../vendor/uPlot.esm.js";
import { h, perFrame, put } from "./dom.js";
import { number } from "./format.js";
import { t } from "./i18n.js";
import { join } from "./series.js";
import { colour, onTheme } from "./theme.js";

const FAMILY = 'Inter, system-ui, "Noto Sans CJK JP", sans-serif';
const LETTER = 15; // px of a letter for which the sizes below are meant
const WHOLE = [1, 2, 5]
  .flatMap((digit) => [...Array(9).keys()].map((power) => digit * 10 ** power))
  .sort((a, b) => a - b);
const sync = uPlot.sync("steps");

/**
 * A chart of one or more curves.
 *
 * @param {object} options title, hint (one sentence), height, log, format (of values), tick (of the axis), sync
 *   (crosshair with the other charts), yRange, lines: [{value, label, colour}] (horizontal limits).
 * @param {AbortSignal} signal ends the chart.
 * @returns {{element, draw}} draw(curves): [{label, colour, step, value, dash, width, points,
 *   faint, hidden, fillTo}]; colours are names of the style sheets, `fillTo` the index of the curve
 *   up to which the area is filled.
 */
export function chart(options, signal) {
  const holder = h("div", { class: "plot" });
  const legend = h("ul", { class: "legend num" });
  const element = h(
    "figure",
    { class: `chart ${options.class ?? ""}`, role: "group", "aria-label": options.title },
    h(
      "figcaption",
      {},
      h("h3", {}, options.title),
      options.hint && h("span", { class: "faint" }, options.hint),
      legend,
    ),
    holder,
  );
  const state = { plot: null, shape: "", curves: [] };
  const redraw = perFrame(() => !signal.aborted && render(state, holder, legend, options));
  const observer = new ResizeObserver(redraw);
  observer.observe(holder);
  onTheme(() => {
    state.shape = ""; // colours are part of the plot
    redraw();
  }, signal);
  signal.addEventListener("abort", () => {
    observer.disconnect();
    state.plot?.destroy();
  });
  const draw = (curves, changes = {}) => {
    Object.assign(options, changes);
    state.curves = curves;
    redraw();
  };
  return { element, draw };
}

function render(state, holder, legend, options) {
  const width = Math.floor(holder.clientWidth);
  if (width < 60) return; // not shown
  const scale = letterSize() / LETTER;
  const height = Math.round(scale * (options.height ?? 220));
  const { curves } = state;
  const empty = !curves.some((curve) => curve.step.length);
  holder.classList.toggle("empty", empty);
  holder.dataset.empty = empty ? (options.waiting ?? t("chart.waiting")) : "";
  const shape = JSON.stringify([
    curves.map((curve) => ({ ...curve, step: 0, value: 0 })),
    options.log,
    options.lines,
    empty,
    scale,
  ]);
  const data = join(curves);
  if (state.plot && shape === state.shape) {
    if (state.plot.width !== width) state.plot.setSize({ width, height });
    state.plot.setData(data);
  } else {
    state.plot?.destroy();
    state.plot = new uPlot(
      { ...plotOptions(state, legend, options, scale), width, height },
      data,
      holder,
    );
    state.shape = shape;
  }
  showValues(state, legend, options, null);
}

function plotOptions(state, legend, options, scale) {
  const ink = colour("ink-faint");
  const grid = { stroke: colour("grid"), width: 1 };
  const axis = { stroke: ink, grid, ticks: { show: false }, font: font(12) };
  const short = (value) => (Math.abs(value) >= 10_000 ? `${number(value / 1000)}k` : number(value));
  return {
    padding: [8, 20, 0, 0],
    legend: { show: false },
    cursor: {
      sync: options.sync === false ? undefined : { key: sync.key, setSeries: false },
      points: { size: 6 },
      drag: { x: true, y: false },
      y: false,
    },
    scales: {
      x: { time: false },
      y: {
        distr: options.log ? 3 : 1,
        range: options.log ? undefined : (_, low, high) => yRange(options, low, high),
      },
    },
    axes: [
      {
        ...axis,
        size: 28 * scale,
        space: 70 * scale,
        incrs: WHOLE,
        values: (_, ticks) => ticks.map((v) => (v === null ? "" : short(v))),
      },
      {
        ...axis,
        size: 56 * scale,
        space: 32 * scale,
        values: (_, ticks) =>
          ticks.map((v) => (v === null ? "" : (options.tick ?? options.format ?? number)(v))),
      },
    ],
    series: [{}, ...state.curves.map(seriesOptions)],
    bands: state.curves.flatMap((curve, index) =>
      curve.fillTo === undefined
        ? []
        : [{ series: [curve.fillTo + 1, index + 1], fill: translucent(colour(curve.fill)) }],
    ),
    hooks: {
      draw: [(plot) => drawLimits(plot, options.lines ?? [])],
      setCursor: [(plot) => showValues(state, legend, options, plot.cursor.idx)],
    },
  };
}

function yRange(options, low, high) {
  const limits = (options.lines ?? []).map((line) => line.value).filter(Number.isFinite);
  if (options.yRange) return options.yRange(low, Math.max(high, ...limits));
  const [from, to] = [Math.min(low ?? 0, ...limits), Math.max(high ?? 1, ...limits)];
  const margin = 0.06 * (to - from || Math.abs(to) || 1);
  return [from >= 0 && from - margin < 0 ? 0 : from - margin, to + margin];
}

function seriesOptions(curve) {
  const stroke = colour(curve.colour);
  return {
    label: curve.label,
    show: !curve.hidden,
    stroke: curve.faint ? translucent(stroke) : stroke,
    width: curve.width ?? 2,
    dash: curve.dash,
    spanGaps: true,
    points: { show: curve.points ?? false, size: 6, fill: colour("surface"), width: 2 },
  };
}

const letterSize = () => Number.parseFloat(getComputedStyle(document.documentElement).fontSize);
const font = (size) => `${Math.round((size * letterSize()) / LETTER)}px ${FAMILY}`;

function translucent(rgb) {
  return rgb.replace("rgb(", "rgba(").replace(")", ", 0.28)");
}

function drawLimits(plot, lines) {
  const { ctx, bbox } = plot;
  for (const line of lines) {
    const y = plot.valToPos(line.value, "y", true);
    if (!Number.isFinite(y) || y < bbox.top || y > bbox.top + bbox.height) continue;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = colour(line.colour);
    ctx.lineWidth = 1.5 * devicePixelRatio;
    ctx.setLineDash([6 * devicePixelRatio, 4 * devicePixelRatio]);
    ctx.beginPath();
    ctx.moveTo(bbox.left, y);
    ctx.lineTo(bbox.left + bbox.width, y);
    ctx.stroke();
    ctx.font = font(11 * devicePixelRatio);
    ctx.textAlign = "right";
    ctx.fillText(line.label, bbox.left + bbox.width - 6, y + 14 * devicePixelRatio);
    ctx.restore();
  }
}

// The legend shows the values under the crosshair, else the newest ones.
function showValues(state, legend, options, index) {
  const format = options.format ?? number;
  const data = state.plot?.data;
  if (!data) return;
  const entries = state.curves.map((curve, place) => ({
    curve,
    value: valueAt(data[place + 1], index),
  }));
  const items = entries
    .filter(({ curve }) => curve.label && !curve.faint && curve.step.length)
    .map(({ curve, value }) =>
      h(
        "li",
        {},
        h("i", {
          class: `swatch ${curve.dash || curve.points ? "dashed" : ""}`,
          vars: { colour: `var(--${curve.colour})` },
        }),
        h("span", {}, curve.label),
        h("b", {}, value === null ? "–" : format(value)),
      ),
    );
  const at = index !== null && index !== undefined && data[0][index] !== undefined;
  const where =
    at &&
    h("li", { class: "where" }, `${options.xLabel ?? t("chart.step")} ${number(data[0][index])}`);
  put(legend, where, items);
}

function valueAt(column, index) {
  const from = index ?? column.length - 1;
  for (let place = from; place >= 0; place -= 1) {
    if (column[place] !== undefined && column[place] !== null) return column[place];
  }
  return null;
}
