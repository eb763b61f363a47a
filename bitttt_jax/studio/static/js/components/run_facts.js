// What a run has written: samples, checkpoints, events, its configuration and command.

import { h } from "../dom.js";
import { ago, bytes, loss, number, when } from "../format.js";
import { t, translated } from "../i18n.js";
import { link } from "../router.js";
import { button, copy } from "./basics.js";

const MOST_SAMPLES = 50;

/** Samples, the newest first. */
export function samplesList(samples) {
  if (!samples.length) return empty(t("samples.none"), t("samples.none.why"));
  const newest = [...samples].reverse().slice(0, MOST_SAMPLES);
  return h(
    "ol",
    { class: "samples" },
    newest.map(({ step, text }) =>
      h(
        "li",
        {},
        h("span", { class: "badge plain num" }, t("samples.step", { step: number(step) })),
        h("pre", {}, text),
      ),
    ),
  );
}

/** Checkpoints with their sizes. */
export function checkpointsTable(id, run) {
  const checkpoints = run.checkpoints ?? [];
  if (!checkpoints.length) return empty(t("checkpoints.none"), t("checkpoints.none.why"));
  const rows = [...checkpoints]
    .reverse()
    .map((point) =>
      h(
        "tr",
        {},
        h(
          "td",
          { class: "num" },
          number(point.step),
          " ",
          point.is_latest && h("span", { class: "badge plain" }, t("checkpoints.latest")),
          " ",
          point.is_best && h("span", { class: "badge plain ok" }, t("checkpoints.best")),
        ),
        h("td", { class: "num" }, bytes(point.bytes)),
        h("td", { class: "num" }, loss(point.eval_loss)),
        h("td", {}, ago(point.time)),
        h(
          "td",
          {},
          h(
            "div",
            { class: "row" },
            h(
              "a",
              { class: "button", href: link("play", [], { model: id, step: point.step }) },
              t("run.play"),
            ),
            h(
              "a",
              { class: "button", href: link("export", [], { model: id, step: point.step }) },
              t("nav.export"),
            ),
          ),
        ),
      ),
    );
  return h(
    "div",
    { class: "panel flush scroll-x" },
    table(
      [t("checkpoints.step"), t("checkpoints.size"), t("run.eval_loss"), t("checkpoints.time"), ""],
      rows,
    ),
  );
}

/** What happened, the newest first. */
export function eventsTable(events) {
  if (!events.length) return null;
  const rows = [...events].reverse().map(({ t: time, kind, step, ...rest }) => {
    const words = Object.entries(rest).map(
      ([key, value]) => `${key} ${typeof value === "object" ? JSON.stringify(value) : value}`,
    );
    return h(
      "tr",
      {},
      h("td", { class: "num soft" }, when(time)),
      h("td", {}, translated(`event.${kind}`, kind)),
      h("td", { class: "num" }, step === undefined ? "" : number(step)),
      h("td", { class: "soft small wrap" }, words.join("  ").slice(0, 300)),
    );
  });
  return h(
    "section",
    { class: "panel" },
    h("h2", {}, t("events.title")),
    h(
      "div",
      { class: "scroll-x" },
      table([t("events.time"), t("events.what"), t("checkpoints.step"), ""], rows),
    ),
  );
}

/** What differs from the preset, the command, the whole configuration. */
export function configPanel(run) {
  const rows = (run.differences ?? []).map(({ key, value, preset_value: before }) =>
    h(
      "tr",
      {},
      h("td", { class: "mono" }, key),
      h("td", { class: "mono wrap" }, show(value)),
      h("td", { class: "mono soft wrap" }, show(before)),
    ),
  );
  const text = JSON.stringify(run.config ?? {}, null, 2);
  return h(
    "section",
    { class: "panel stack" },
    h("h2", {}, t("config.title")),
    run.command && [
      h("pre", { class: "block", id: "run-command" }, run.command),
      h(
        "div",
        {},
        button(t("copy"), () => copy(run.command)),
      ),
    ],
    rows.length
      ? h(
          "div",
          { class: "scroll-x" },
          table([t("config.key"), t("config.value"), t("config.preset_value")], rows),
        )
      : h("p", { class: "soft" }, t("config.same", { preset: run.preset ?? "" })),
    h("details", {}, h("summary", {}, t("config.all")), h("pre", { class: "block small" }, text)),
    run.folder && h("p", { class: "faint" }, t("config.folder"), " ", h("code", {}, run.folder)),
  );
}

const show = (value) => (typeof value === "string" ? value : JSON.stringify(value));

function table(heads, rows) {
  return h(
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
  );
}

/** An empty state: what would be here, and how it comes about. */
export function empty(title, text, ...more) {
  return h(
    "div",
    { class: "empty-state" },
    h("h3", {}, title),
    h("p", { class: "soft" }, text),
    more,
  );
}

/** One figure with its name. */
export const fact = (label, value) => h("div", {}, h("dt", {}, label), h("dd", {}, value));
