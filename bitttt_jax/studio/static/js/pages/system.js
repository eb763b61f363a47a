// The computer: processors, memory, disk, graphics cards, and the work in the background.

import { get } from "../api.js";
import { chart } from "../charts.js";
import { bar, levelOf, setBar } from "../components/basics.js";
import { drawDevices } from "../components/devices.js";
import { refusal } from "../components/problem.js";
import { setTitle } from "../components/shell.js";
import { h, put } from "../dom.js";
import { on } from "../events.js";
import { bytes, clock, percent } from "../format.js";
import { t, translated } from "../i18n.js";
import { info } from "../store.js";

const KEPT = 300; // readings

export async function drawSystem(main, _place, signal) {
  setTitle(t("nav.system"));
  const tiles = h("div", { class: "tiles" });
  const gpus = h("div", { class: "stack" });
  const jobs = h("div", { class: "panel stack" });
  const facts = h("dl", { class: "facts column" });
  const yRange = () => [0, 1];
  const history = { step: [], cpu: [], memory: [] };
  const load = chart(
    {
      title: t("system.history"),
      format: (v) => percent(v, 0),
      yRange,
      sync: false,
      xLabel: t("system.seconds"),
    },
    signal,
  );
  main.append(
    h(
      "header",
      { class: "page-head" },
      h("div", {}, h("h1", {}, t("nav.system")), h("p", {}, t("system.lead"))),
    ),
    h(
      "div",
      { class: "stack wide" },
      tiles,
      load.element,
      gpus,
      h(
        "div",
        { class: "columns even" },
        jobs,
        h("section", { class: "panel stack tight" }, h("h2", {}, t("system.about")), facts),
      ),
    ),
  );
  const show = (system) => {
    drawTiles(tiles, system);
    drawGpus(gpus, system.gpus ?? []);
    remember(history, system);
    load.draw([
      { label: t("system.cpu"), colour: "c1", step: history.step, value: history.cpu },
      {
        label: t("system.memory"),
        colour: "c2",
        dash: [6, 4],
        step: history.step,
        value: history.memory,
      },
    ]);
  };
  const showJobs = () =>
    get("jobs", {}, { signal }).then(
      (answer) => put(jobs, jobsTable(answer.jobs)),
      () => {},
    );
  on("system", show, signal);
  on("job", showJobs, signal);
  try {
    show(await get("system", {}, { signal }));
    await showJobs();
    drawFacts(facts, await info());
  } catch (error) {
    if (error.name !== "AbortError") main.append(refusal(error));
  }
}

function remember(history, { time, cpu_percent: cpu, memory }) {
  history.start ??= time;
  const at = Math.round(time - history.start);
  if (history.step.at(-1) === at) return;
  history.step.push(at);
  history.cpu.push(mean(cpu) / 100);
  history.memory.push(memory.used / memory.total);
  for (const key of ["step", "cpu", "memory"]) if (history[key].length > KEPT) history[key].shift();
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);

function drawTiles(holder, system) {
  const { cpu_percent: cpu, memory, disk, swap, pressure } = system;
  const cores = h(
    "div",
    { class: "cores", "aria-hidden": "true" },
    cpu.map((value) => h("i", { vars: { share: value / 100 } })),
  );
  const used = memory.used / memory.total;
  const level = pressure && pressure !== "ok" ? pressure : levelOf(used);
  put(
    holder,
    tile(t("system.cpu"), percent(mean(cpu) / 100, 0), t("system.cores", { n: cpu.length }), cores),
    tile(
      t("system.memory"),
      percent(used, 0),
      `${bytes(memory.used)} / ${bytes(memory.total)}`,
      meter(used, level, t("system.memory")),
      level !== "ok" && h("p", { class: "problem" }, t(`memory.${level}`)),
    ),
    tile(
      t("system.disk"),
      bytes(disk.free),
      t("system.disk_free", { total: bytes(disk.total) }),
      meter(1 - disk.free / disk.total, levelOf(1 - disk.free / disk.total), t("system.disk")),
    ),
    swap?.total > 0 &&
      tile(
        t("system.swap"),
        bytes(swap.used),
        bytes(swap.total),
        meter(swap.used / swap.total, "ok", t("system.swap")),
      ),
  );
}

function meter(share, level, label) {
  const element = bar(share, label);
  setBar(element, share, level);
  return element;
}

function tile(title, value, below, ...more) {
  return h(
    "section",
    { class: "panel tile" },
    h("h2", { class: "eyebrow" }, title),
    h("p", { class: "tile-value num" }, value),
    h("p", { class: "faint num" }, below),
    more,
  );
}

function drawGpus(holder, gpus) {
  if (!gpus.length) return void put(holder, h("p", { class: "faint" }, t("system.no_gpu")));
  const grid = h("div");
  drawDevices(
    grid,
    gpus.map((gpu) => ({ name: gpu.name, index: gpu.index, used: gpu.used, limit: gpu.total })),
  );
  const rows = gpus.map((gpu) =>
    h(
      "tr",
      {},
      h("td", { class: "num" }, gpu.index),
      h("td", {}, gpu.name),
      h("td", { class: "num" }, `${bytes(gpu.used)} / ${bytes(gpu.total)}`),
      h("td", { class: "num" }, gpu.utilisation === null ? "–" : `${gpu.utilisation} %`),
      h("td", { class: "num" }, gpu.temperature === null ? "–" : `${gpu.temperature} °C`),
      h("td", { class: "num" }, gpu.power === null ? "–" : `${Math.round(gpu.power)} W`),
    ),
  );
  const heads = [
    "#",
    t("system.gpu"),
    t("system.memory"),
    t("system.utilisation"),
    t("system.temperature"),
    t("system.power"),
  ];
  put(
    holder,
    h(
      "section",
      { class: "panel stack" },
      h("h2", {}, t("system.gpus")),
      grid,
      h(
        "div",
        { class: "scroll-x" },
        h(
          "table",
          {},
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              heads.map((head) => h("th", { scope: "col" }, head)),
            ),
          ),
          h("tbody", {}, rows),
        ),
      ),
    ),
  );
}

function jobsTable(jobs) {
  const rows = [...jobs]
    .sort((a, b) => b.started - a.started)
    .slice(0, 12)
    .map((job) =>
      h(
        "tr",
        {},
        h("td", {}, translated(`job.kind.${job.kind}`, job.kind)),
        h("td", { class: "wrap" }, job.title),
        h("td", {}, t(`job.${job.state}`)),
        h("td", { class: "num soft" }, clock(job.started)),
      ),
    );
  return [
    h("h2", {}, t("system.jobs")),
    rows.length
      ? h("div", { class: "scroll-x" }, h("table", {}, h("tbody", {}, rows)))
      : h("p", { class: "soft" }, t("system.no_jobs")),
  ];
}

function drawFacts(holder, facts) {
  const rows = [
    [t("system.version"), `bitttt-jax ${facts.version}`],
    [t("system.host"), facts.hostname],
    [t("system.runs_root"), facts.runs_root],
    [t("system.data_roots"), (facts.data_roots ?? []).join(", ")],
    ["TensorBoard", t(facts.extras?.tensorboard ? "yes" : "no")],
  ];
  put(
    holder,
    rows.map(([label, value]) =>
      h("div", {}, h("dt", {}, label), h("dd", { class: "wrap" }, value)),
    ),
  );
}
