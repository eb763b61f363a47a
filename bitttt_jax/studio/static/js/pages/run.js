// One run: what it does, its curves, log, samples and checkpoints. Everything comes from the run's
// folder, so that a reload in the middle shows all of it again.

import { get, segment } from "../api.js";
import { tabs } from "../components/basics.js";
import { logView } from "../components/logview.js";
import { errorCard, refusal, showRefusal } from "../components/problem.js";
import { setTitle } from "../components/shell.js";
import { h, put } from "../dom.js";
import { on, watch } from "../events.js";
import { t } from "../i18n.js";
import { go, link, note } from "../router.js";
import { Series } from "../series.js";
import { isLive } from "../store.js";
import { runHeader } from "../components/run_header.js";
import { runCharts } from "../components/run_charts.js";
import {
  checkpointsTable,
  configPanel,
  eventsTable,
  samplesList,
} from "../components/run_facts.js";

const LOG_LINES = 500;
const LINGERING_MS = 1000;

export async function drawRun(main, { args: [id, tab], query }, signal) {
  setTitle(id);
  const others = (query.with ?? "").split(",").filter((other) => other && other !== id);
  const runs = new Map([id, ...others].map((name) => [name, new Series()]));
  const view = {
    header: runHeader(id, signal),
    card: h("div"),
    charts: runCharts(
      id,
      others,
      runs,
      (names) => go("run", [id, tab], { with: names.join(",") }),
      signal,
    ),
    log: logView(t("run.log"), `api/runs/${segment(id)}/log/file`),
    samples: h("div"),
    checkpoints: h("div"),
    config: h("div", { class: "stack wide" }),
  };
  const entries = [
    { key: "curves", label: t("run.curves"), panel: view.charts.element },
    { key: "samples", label: t("run.samples"), panel: view.samples },
    { key: "checkpoints", label: t("run.checkpoints"), panel: view.checkpoints },
    { key: "log", label: t("run.log"), panel: view.log.element },
    { key: "config", label: t("run.config"), panel: view.config },
  ];
  const body = tabs(entries, tab, (key) => note("run", [id, key], query));
  main.append(
    h(
      "nav",
      { class: "crumb small", "aria-label": t("nav.pages") },
      h("a", { href: link("runs") }, t("nav.runs")),
      " / ",
      h("span", {}, id),
    ),
    view.header.element,
    view.card,
    body,
  );
  await load(main, id, runs, view, signal);
}

async function load(main, id, runs, view, signal) {
  listen(id, runs, view, signal);
  try {
    const reading = [...runs].map(([name, series]) => loadSeries(name, series, signal));
    const [log, cursors] = await Promise.all([
      get(`runs/${segment(id)}/log`, { lines: LOG_LINES }, { signal }),
      Promise.all(reading),
      refresh(id, view, signal),
    ]);
    view.log.replace(log.lines);
    view.charts.draw();
    // From here on the events go on exactly where the answers ended.
    [...runs.keys()].forEach((name, index) => {
      const ends = name === id ? [cursors[index], log.cursor] : [cursors[index]];
      watch(name, ends.filter(Boolean), signal);
    });
  } catch (error) {
    if (error.name !== "AbortError") main.append(refusal(error));
  }
}

function listen(id, runs, view, signal) {
  const take = async ({ id: name, rows, reset }) => {
    if (!runs.has(name)) return;
    if (reset) await loadSeries(name, runs.get(name), signal).catch(() => {});
    else runs.get(name).append(rows);
    view.charts.draw();
  };
  on("metrics", take, signal);
  on("log", (data) => data.id === id && view.log.append(data.lines), signal);
  let state = "";
  const changed = (run) => {
    view.header.update(run);
    // What stands in other files is read again when the run enters another state.
    if (state && state !== `${run.state}${run.alive}`) refresh(id, view, signal).catch(() => {});
    state = `${run.state}${run.alive}`;
  };
  on("run", (run) => run.id === id && changed(run), signal);
  on("runs", (data) => data.runs.filter((run) => run.id === id).forEach(changed), signal);
}

async function refresh(id, view, signal) {
  const [run, { samples }] = await Promise.all([
    get(`runs/${segment(id)}`, {}, { signal }),
    get(`runs/${segment(id)}/samples`, {}, { signal }),
  ]);
  view.header.update(run);
  // A process that ends says nothing more; only afterwards can its run be resumed.
  if ((run.alive || run.can_stop) && !isLive(run))
    setTimeout(() => again(id, view, signal), LINGERING_MS);
  view.charts.describe(run);
  put(view.samples, samplesList(samples));
  put(view.checkpoints, checkpointsTable(id, run));
  put(view.config, configPanel(run), eventsTable(run.events ?? []));
  put(view.card, run.card && errorCard(run.card, (action) => act(id, run.card, action, view)));
}

function again(id, view, signal) {
  if (!signal.aborted) refresh(id, view, signal).catch(() => {});
}

async function loadSeries(name, series, signal) {
  const query = { points: 2000 };
  const { tags, cursor } = await get(`runs/${segment(name)}/series`, query, { signal });
  series.load(tags);
  return cursor;
}

/** Does what a button of a run's card says. */
async function act(id, card, action, view) {
  if (action.changes) return go("new", [], { clone: id, changes: JSON.stringify(action.changes) });
  if (action.action === "clone") return go("new", [], { clone: id });
  if (action.action === "estimate") return go("new", [], { clone: id, estimate: "1" });
  if (action.action === "open_data") return go("data");
  if (action.action === "resume") return view.header.resume();
  if (action.action === "force") return view.header.force();
  return showRefusal(view.card, new Error(action.label ?? action.action));
}
