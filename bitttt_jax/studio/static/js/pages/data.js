// From text to tokens: choose or bring files, look at them, clean, choose a tokenizer, prepare.

import { get } from "../api.js";
import { button, choice, icon, labelled } from "../components/basics.js";
import { previewPanel } from "../components/data_preview.js";
import { preparePanel, preparedList } from "../components/data_prepare.js";
import { tokenizerPanel } from "../components/data_tokenizer.js";
import { dropZone, fileBrowser } from "../components/files.js";
import { plainFields } from "../components/form.js";
import { refusal } from "../components/problem.js";
import { setTitle } from "../components/shell.js";
import { h, put } from "../dom.js";
import { t } from "../i18n.js";
import { schema } from "../store.js";

const KINDS = ["auto", "text", "jsonl", "messages", "huggingface", "shards"];

export async function drawData(main, _place, signal) {
  setTitle(t("nav.data"));
  const state = { sources: [], clean: {}, template: "", tokenizer: { kind: "bytes" } };
  const prepared = h("div", { class: "stack tight" });
  const showPrepared = () =>
    get("data", {}, { signal }).then(
      (answer) => put(prepared, preparedList(answer.prepared)),
      (error) => error.name !== "AbortError" && put(prepared, refusal(error)),
    );
  const shape = await schema().catch(() => ({ fields: [] }));
  if (signal.aborted) return;
  const preview = previewPanel(state, signal);
  const prepare = preparePanel(state, showPrepared, signal);
  const changed = () => (preview.refresh(), prepare.refresh());
  const steps = [
    step(1, t("data.choose"), t("data.choose.why"), sourcesPanel(state, shape, changed, signal)),
    step(
      2,
      t("data.look"),
      t("data.look.why"),
      h("div", { class: "stack" }, cleaning(state, shape, changed), preview.element),
    ),
    step(
      3,
      t("data.tokenizer"),
      t("data.tokenizer.why"),
      tokenizerPanel(state, prepare.refresh, signal),
    ),
    step(4, t("data.prepare"), t("data.prepare.why"), prepare.element),
  ];
  const aside = h(
    "aside",
    { class: "sticky stack" },
    h("section", { class: "panel stack tight" }, h("h2", {}, t("data.prepared")), prepared),
  );
  main.append(
    h(
      "header",
      { class: "page-head" },
      h("div", {}, h("h1", {}, t("nav.data")), h("p", {}, t("data.lead"))),
    ),
    h("div", { class: "columns" }, h("div", { class: "stack wide" }, steps), aside),
  );
  await showPrepared();
}

function step(place, title, why, content) {
  const heading = `data-step-${place}`;
  return h(
    "section",
    { class: "panel step", "aria-labelledby": heading },
    h("span", { class: "step-number num", "aria-hidden": "true" }, place),
    h(
      "div",
      { class: "stack" },
      h("div", {}, h("h2", { id: heading }, title), h("p", { class: "faint" }, why)),
      content,
    ),
  );
}

function sourcesPanel(state, shape, changed, signal) {
  const chosen = h("ul", { class: "sources" });
  const browser = fileBrowser((entry) => add(entry.path));
  const kinds = shape.fields.find(({ key }) => key.endsWith("sources.kind"))?.choices ?? KINDS;
  function add(path) {
    if (!state.sources.some((source) => source.path === path))
      state.sources.push({ path, kind: "auto" });
    draw();
    changed();
  }
  function draw() {
    const rows = state.sources.map((source) =>
      sourceRow(
        source,
        kinds,
        changed,
        () => (
          (state.sources = state.sources.filter((other) => other !== source)),
          draw(),
          changed()
        ),
      ),
    );
    put(chosen, rows, !rows.length && h("li", { class: "faint" }, t("data.nothing_chosen")));
  }
  const uploaded = ({ path }) => (add(path), browser.open(""));
  draw();
  browser.open("");
  return h(
    "div",
    { class: "stack" },
    h(
      "div",
      { class: "columns even" },
      dropZone(uploaded, signal),
      h("div", { class: "stack tight" }, h("h3", {}, t("data.files")), browser.element),
    ),
    h("h3", {}, t("data.chosen")),
    chosen,
  );
}

function sourceRow(source, kinds, changed, remove) {
  const kind = choice(
    kinds.map((name) => [name, t(`data.kind.${name}`)]),
    source.kind,
    (value) => ((source.kind = value), changed()),
    { "aria-label": t("data.kind") },
  );
  const glob = h("input", {
    value: source.glob ?? "",
    placeholder: "**/*",
    "aria-label": t("data.glob"),
    onchange: () => setOrDelete(source, "glob", glob.value, changed),
  });
  const field = h("input", {
    value: source.field ?? "",
    placeholder: "text",
    "aria-label": t("data.field"),
    onchange: () => setOrDelete(source, "field", field.value, changed),
  });
  const more = h(
    "details",
    {},
    h("summary", {}, t("data.more")),
    h("div", { class: "row" }, labelled(t("data.glob"), glob), labelled(t("data.field"), field)),
  );
  return h(
    "li",
    {},
    h(
      "div",
      { class: "row apart" },
      h("code", { class: "wrap" }, source.path),
      h(
        "div",
        { class: "row" },
        kind,
        button(icon("close"), remove, {
          class: "quiet icon",
          "aria-label": t("data.remove", { name: source.path }),
        }),
      ),
    ),
    more,
  );
}

function setOrDelete(source, key, value, changed) {
  if (value) source[key] = value;
  else delete source[key];
  changed();
}

function cleaning(state, shape, changed) {
  const prefix = "data.clean.";
  const fields = shape.fields.filter(({ key }) => key.startsWith(prefix));
  if (!fields.length) return null;
  const element = plainFields(fields, (key, value) => {
    state.clean[key.slice(prefix.length)] = value;
    changed();
  });
  return h("details", { class: "cleaning" }, h("summary", {}, t("data.clean")), element);
}
