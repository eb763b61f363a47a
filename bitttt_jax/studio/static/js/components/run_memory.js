// Memory of a run: its curve with the limits, a warning before it is too late, all devices.

import { h, put } from "../dom.js";
import { t } from "../i18n.js";
import { levelOf } from "./basics.js";
import { devicesOf, drawDevices } from "./devices.js";
import { tagCurves } from "./run_curves.js";

/** Bytes of the unit that metrics have. */
export const GIB = 2 ** 30;

/** Draws the memory of the first run, and the curves of those laid over it. */
export function drawMemory(id, names, runs, state, view) {
  const tags = [
    ["mem/host_peak_gib", "chart.memory_host"],
    ["mem/peak_gib", "chart.memory_device"],
  ];
  const curves = tagCurves(names, runs, tags, 0);
  const series = runs.get(id);
  const limits = limitsOf(series, state);
  const usage = limits.map((limit) => ({
    ...limit,
    share: (series.last(limit.tag) ?? 0) / limit.value,
  }));
  const near = usage.filter(({ share }) => share > 0.3); // a far limit would press the curve flat
  view.memory.element.hidden = !curves.length;
  view.memory.draw(curves, {
    lines: near.map(({ value, label }) => ({ value, label, colour: "bad" })),
  });
  state.usage = usage;
  showMemory(state, view.memoryNote);
  view.devices.hidden = !state.devices?.length;
  if (state.devices?.length) {
    const holder = h("div");
    drawDevices(holder, devicesOf(state.devices));
    put(view.devices, h("h2", {}, t("devices.title")), holder);
  }
}

function limitsOf(series, state) {
  const device = state.devices?.length ? state.devices[0].limit / GIB : null;
  const limits = [];
  if (series.has("mem/host_peak_gib") && state.hostLimit)
    limits.push({
      tag: "mem/host_peak_gib",
      value: state.hostLimit / GIB,
      label: t("chart.limit_host"),
    });
  if (series.has("mem/peak_gib") && device)
    limits.push({ tag: "mem/peak_gib", value: device, label: t("chart.limit_device") });
  return limits;
}

/** A warning before it is too late: of the devices, of the host, or of both. */
export function showMemory(state, holder) {
  const worst = Math.max(0, ...(state.usage ?? []).map(({ share }) => share));
  const level =
    state.pressure === "full" || levelOf(worst) === "full"
      ? "full"
      : state.pressure === "high" || levelOf(worst) === "high"
        ? "high"
        : "ok";
  put(
    holder,
    level !== "ok" &&
      h(
        "div",
        { class: `card ${level === "full" ? "bad" : "warn"} compact`, role: "status" },
        t(`memory.${level}`),
      ),
  );
}
