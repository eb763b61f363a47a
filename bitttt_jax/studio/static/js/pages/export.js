// A model into a file or folder for other programs, with the check that it still is the same one.

import { get, post, segment } from "../api.js";
import { button, choice, confirmDialog, labelled } from "../components/basics.js";
import { jobPanel } from "../components/jobs.js";
import { refusal, showRefusal } from "../components/problem.js";
import { empty } from "../components/run_facts.js";
import { setTitle } from "../components/shell.js";
import { h, put } from "../dom.js";
import { ago, bytes, number } from "../format.js";
import { t } from "../i18n.js";

const FORMATS = ["packed", "hf", "hf-packed", "gguf-f16", "gguf-tq1_0", "gguf-tq2_0", "gguf-i2_s"];
const LAYOUTS = ["i2_s", "rows4", "base3"];
const TABLES = ["exact", "int8", "int4", "int4x2"];

export async function drawExport(main, { query }, signal) {
  setTitle(t("nav.export"));
  const list = h("div", { class: "stack" });
  main.append(
    h(
      "header",
      { class: "page-head" },
      h("div", {}, h("h1", {}, t("nav.export")), h("p", {}, t("export.lead"))),
    ),
  );
  const showList = () =>
    get("exports", {}, { signal }).then(
      ({ exports }) => put(list, exportsList(exports, showList)),
      (error) => error.name !== "AbortError" && put(list, refusal(error)),
    );
  try {
    const { models } = await get("models", {}, { signal });
    const content = models.length
      ? exportForm(models, query, showList, signal)
      : empty(t("play.no_models"), t("play.no_models.why"));
    main.append(
      h(
        "div",
        { class: "columns" },
        h("section", { class: "panel stack" }, content),
        h(
          "aside",
          { class: "stack" },
          h("section", { class: "panel stack" }, h("h2", {}, t("export.done_list")), list),
        ),
      ),
    );
    await showList();
  } catch (error) {
    if (error.name !== "AbortError") main.append(refusal(error));
  }
}

function exportForm(models, query, ondone, signal) {
  const state = { to: "packed", named: false };
  const first = models.find(({ id }) => id === query.model) ?? models[0];
  const model = choice(
    models.map(({ id, name }) => [id, name]),
    first.id,
    () => drawSteps(),
    { id: "export-model" },
  );
  const step = h("select", { id: "export-step" });
  const name = h("input", {
    id: "export-name",
    spellcheck: "false",
    autocomplete: "off",
    oninput: () => (state.named = true),
  });
  const layout = choice(
    LAYOUTS.map((key) => [key, t(`export.layout.${key}`)]),
    "i2_s",
    null,
    { id: "export-layout" },
  );
  const table = choice(
    TABLES.map((key) => [key, t(`export.table.${key}`)]),
    "exact",
    null,
    { id: "export-table" },
  );
  const packedOnly = h(
    "div",
    { class: "columns pair" },
    labelled(t("export.layout"), layout),
    labelled(t("export.table"), table),
  );
  const problem = h("div");
  const holder = h("div");
  const formats = FORMATS.map((to) => {
    const input = h("input", {
      type: "radio",
      name: "format",
      value: to,
      checked: to === state.to,
      onchange: () => ((state.to = to), drawName()),
    });
    return h(
      "label",
      { class: "preset" },
      input,
      h("b", {}, t(`export.to.${to}`)),
      h("span", { class: "faint" }, t(`export.to.${to}.why`)),
    );
  });
  const chosen = () => models.find(({ id }) => id === model.value);
  function drawSteps() {
    const steps = [...(chosen().steps ?? [])].reverse();
    put(
      step,
      h("option", { value: "" }, t("play.newest")),
      steps.map((value) =>
        h("option", { value, selected: String(value) === query.step }, number(value)),
      ),
    );
    step.disabled = !steps.length;
    drawName();
  }
  function drawName() {
    packedOnly.hidden = state.to !== "packed";
    if (state.named) return;
    const stem = chosen()
      .name.split("/")
      .at(-1)
      .replace(/\.gguf$/, "");
    name.value = state.to.startsWith("gguf")
      ? `${stem}-${state.to.slice(5)}.gguf`
      : `${stem}-${state.to}`;
  }
  async function begin() {
    showRefusal(problem, null);
    start.disabled = true;
    const body = {
      model: model.value,
      step: step.value ? Number(step.value) : null,
      to: state.to,
      layout: layout.value,
      table: table.value,
      name: name.value.trim(),
    };
    if (state.to !== "packed") Object.assign(body, { layout: "i2_s", table: "exact" });
    try {
      const { job } = await post("exports", body);
      const panel = jobPanel(job.id ?? job, {
        done: (done) => result(done.result, body.name),
        signal,
      });
      put(holder, panel.element);
      await panel.finished;
      ondone();
    } catch (error) {
      showRefusal(problem, error);
    }
    start.disabled = false;
  }
  const start = button(t("export.start"), begin, { class: "primary", id: "start-export" });
  drawSteps();
  return [
    h(
      "div",
      { class: "columns pair" },
      labelled(t("play.model"), model),
      labelled(t("play.step"), step),
    ),
    h("h2", {}, t("export.format")),
    h("div", { class: "presets", role: "radiogroup", "aria-label": t("export.format") }, formats),
    packedOnly,
    labelled(t("export.name"), name),
    h("div", {}, start),
    problem,
    holder,
  ];
}

const fileUrl = (name) => `api/exports/${segment(name)}/file`;

function result(done, name) {
  return h(
    "div",
    { class: "card ok", id: "export-result" },
    h("h3", {}, t("export.ready", { bytes: bytes(done?.bytes) })),
    done?.verification &&
      h(
        "div",
        { class: "stack tight" },
        h("p", { class: "small" }, t("export.verified")),
        h("pre", { class: "block small" }, done.verification),
      ),
    h(
      "div",
      {},
      h("a", { class: "button primary", href: fileUrl(name), download: "" }, t("export.download")),
    ),
  );
}

function exportsList(exports, reload) {
  if (!exports.length) return empty(t("export.none"), t("export.none.why"));
  return h(
    "ul",
    { class: "prepared" },
    exports.map((item) => exportRow(item, reload)),
  );
}

function exportRow(item, reload) {
  const problem = h("div");
  const remove = async () => {
    if (
      !(await confirmDialog(
        t("export.delete"),
        t("export.delete_ask", { name: item.name }),
        t("export.delete"),
      ))
    )
      return;
    await post(`exports/${segment(item.name)}/delete`).then(reload, (error) =>
      showRefusal(problem, error),
    );
  };
  const verification =
    item.verification &&
    h(
      "details",
      {},
      h("summary", {}, t("export.verification")),
      h("pre", { class: "block small" }, item.verification),
    );
  return h(
    "li",
    { class: "stack tight" },
    h(
      "div",
      { class: "row apart" },
      h(
        "div",
        {},
        h("b", { class: "wrap" }, item.name),
        h(
          "p",
          { class: "faint num" },
          [item.kind, bytes(item.bytes), ago(item.created)].filter(Boolean).join(" · "),
        ),
      ),
      h(
        "div",
        { class: "row" },
        h("a", { class: "button", href: fileUrl(item.name), download: "" }, t("export.download")),
        button(t("export.delete"), remove, { class: "quiet danger" }),
      ),
    ),
    verification,
    problem,
  );
}
