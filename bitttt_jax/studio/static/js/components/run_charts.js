// The curves of a run, and of others laid over it.

import { chart } from "../charts.js";
import { h } from "../dom.js";
import { on } from "../events.js";
import { bytes, count, loss, number, percent } from "../format.js";
import { t } from "../i18n.js";
import { store, stored } from "../prefs.js";
import { allRuns, info } from "../store.js";
import { button, choice } from "./basics.js";
import { lossCurves, tagCurves } from "./run_curves.js";
import { GIB, drawMemory, showMemory } from "./run_memory.js";

// Every chart: its tags with their names, and when it is shown.
const CHARTS = [
  { key: "lr", tags: [["lr", "chart.lr"]] },
  { key: "grad_norm", tags: [["grad_norm", "chart.grad_norm"]], log: true },
  { key: "speed", tags: [["perf/tokens_per_s", "chart.speed"]], format: count, zero: true },
  {
    key: "ternary",
    tags: [
      ["quant/zero_share", "chart.zero_share"],
      ["quant/flip_share", "chart.flip_share"],
    ],
    format: (v) => percent(v),
  },
  {
    key: "inner",
    tags: [
      ["ttt/inner_loss_initial", "chart.inner_initial"],
      ["ttt/inner_loss_current", "chart.inner_current"],
      ["ttt/inner_loss_updated", "chart.inner_updated"],
    ],
  },
  {
    key: "drift",
    tags: [
      ["ttt/fast_drift", "chart.fast_drift"],
      ["ttt/inner_rate", "chart.inner_rate"],
    ],
  },
  {
    key: "threshold",
    tags: [
      ["quant/threshold_distance", "chart.threshold"],
      ["quant/scale", "chart.scale"],
    ],
  },
];
const SHOWN_ELSEWHERE =
  /^(train|eval|final)\/(loss|ppl|bpb|loss_error|tokens)$|^mem\/|^perf\/step_s$/;

/** The panel of charts; `draw()` after new numbers, `describe(run)` after news of the run. */
export function runCharts(id, others, runs, onoverlay, signal) {
  const state = { smoothing: stored("smoothing", 0.6), log: stored("log", false), shown: {} };
  const grid = h("div", { class: "charts" });
  const main = chart(
    {
      title: t("chart.loss"),
      hint: t("chart.loss.hint"),
      height: 340,
      class: "wide",
      format: loss,
    },
    signal,
  );
  const memory = chart(
    {
      title: t("chart.memory"),
      hint: t("chart.memory.hint"),
      format: (v) => bytes(v * GIB),
      tick: number,
      yRange: (_, high) => [0, 1.15 * (high || 1)],
    },
    signal,
  );
  const small = CHARTS.map((spec) => ({
    spec,
    ...chart(
      {
        title: t(`chart.title.${spec.key}`),
        hint: t(`chart.hint.${spec.key}`),
        log: spec.log,
        format: spec.format,
        yRange: spec.zero ? (_, high) => [0, 1.1 * (high || 1)] : undefined,
      },
      signal,
    ),
  }));
  const devices = h("div", { class: "panel", hidden: true });
  const more = h("div", { class: "charts" });
  const memoryNote = h("div");
  const redraw = () =>
    drawAll(id, runs, state, { main, memory, small, more, devices, memoryNote }, signal);
  grid.append(
    main.element,
    ...small.slice(0, 5).map((c) => c.element),
    memory.element,
    ...small.slice(5).map((c) => c.element),
  );
  const element = h(
    "div",
    { class: "stack" },
    controls(state, others, onoverlay, id, redraw),
    memoryNote,
    grid,
    devices,
    h(
      "details",
      { ontoggle: redraw, class: "more-charts" },
      h("summary", {}, t("chart.more")),
      more,
    ),
  );
  info().then(
    (facts) => ((state.hostLimit = facts.memory_bytes), redraw()),
    () => {},
  );
  on(
    "system",
    (system) => ((state.pressure = system.pressure), showMemory(state, memoryNote)),
    signal,
  );
  const describe = (run) => ((state.devices = run.devices ?? state.devices), redraw());
  on("run", (run) => run.id === id && run.devices && describe(run), signal);
  return { element, draw: redraw, describe };
}

function controls(state, others, onoverlay, id, redraw) {
  const words = h("output", { class: "num small" }, state.smoothing.toFixed(2));
  const onsmooth = (event) => {
    state.smoothing = Number(event.target.value);
    words.textContent = state.smoothing.toFixed(2);
    store("smoothing", state.smoothing);
    redraw();
  };
  const slider = h("input", {
    type: "range",
    min: 0,
    max: 0.98,
    step: 0.02,
    value: state.smoothing,
    oninput: onsmooth,
    id: "smoothing",
  });
  const log = h("input", {
    type: "checkbox",
    checked: state.log,
    id: "log-scale",
    onchange: () => ((state.log = log.checked), store("log", log.checked), redraw()),
  });
  const overlay = choice(
    [["", t("chart.overlay")]],
    "",
    (name) => name && onoverlay([...others, name]),
    { "aria-label": t("chart.overlay"), class: "overlay" },
  );
  allRuns().then(
    (all) =>
      overlay.append(
        ...all
          .filter((run) => run.id !== id && !others.includes(run.id))
          .map((run) => h("option", { value: run.id }, run.id)),
      ),
    () => {},
  );
  const laid = others.map((name) =>
    button(`${name} ×`, () => onoverlay(others.filter((other) => other !== name)), {
      class: "quiet",
      "aria-label": t("chart.overlay_remove", { name }),
    }),
  );
  return h(
    "div",
    { class: "row chart-tools" },
    h("label", { class: "check", for: "smoothing" }, t("chart.smoothing")),
    slider,
    words,
    h("label", { class: "check switch" }, log, t("chart.log")),
    overlay,
    laid,
    h("span", { class: "faint" }, t("chart.zoom")),
  );
}

function drawAll(id, runs, state, view, signal) {
  const names = [...runs.keys()];
  view.main.draw(lossCurves(names, runs, state.smoothing), { log: state.log });
  for (const { spec, element, draw } of view.small) {
    const curves = tagCurves(names, runs, spec.tags, state.smoothing);
    element.hidden = !curves.length;
    draw(curves);
  }
  drawMemory(id, names, runs, state, view);
  drawMore(names, runs, state, view.more, signal);
}

// All other numbers of the run, each in a chart of its own.
function drawMore(names, runs, state, holder, signal) {
  if (!holder.parentElement?.open) return;
  const known = new Set(CHARTS.flatMap(({ tags }) => tags.map(([tag]) => tag)));
  const rest = [...new Set(names.flatMap((name) => [...runs.get(name).tags.keys()]))].filter(
    (tag) => !known.has(tag) && !SHOWN_ELSEWHERE.test(tag),
  );
  for (const tag of rest.sort()) {
    state.shown[tag] ??= addChart(tag, holder, signal);
    state.shown[tag].draw(tagCurves(names, runs, [[tag, tag]], state.smoothing));
  }
}

function addChart(tag, holder, signal) {
  const added = chart({ title: tag, format: number }, signal);
  holder.append(added.element);
  return added;
}
