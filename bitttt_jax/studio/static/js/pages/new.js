// A new run: presets, one dial for the size, every field of the configuration with its help, and
// always the command that does the same.

import { get, post, segment } from "../api.js";
import { button, choice, confirmDialog, labelled, toast } from "../components/basics.js";
import { commandBox } from "../components/command.js";
import { preparedValues } from "../components/data_field.js";
import { estimatePanel } from "../components/estimate.js";
import { formFields } from "../components/form.js";
import { refusal, showRefusal } from "../components/problem.js";
import { setTitle } from "../components/shell.js";
import { sizeDial } from "../components/size.js";
import { debounce, h, put } from "../dom.js";
import { t, translated } from "../i18n.js";
import { go } from "../router.js";
import { schema } from "../store.js";

const CHECK_MS = 250;
const FIRST = ["quickstart", "debug"]; // what trains on any computer stands before the others

export async function drawNew(main, { query }, signal) {
  setTitle(t("nav.new"));
  const shape = await schema().catch((error) => (main.append(refusal(error)), null));
  if (!shape || signal.aborted) return;
  const start = await startingPoint(query, shape);
  const state = { schema: shape, ...start, checked: null, from: query.clone ?? "" };
  const view = layout(state, signal);
  main.append(view.element);
  view.check();
  if (query.estimate) view.estimate.run();
}

// A preset, a clone of a run, that clone with the changes that a failure's card proposes, or data.
async function startingPoint(query, shape) {
  const first = shape.presets.find(({ name }) => name === "quickstart") ?? shape.presets[0];
  let start = { preset: query.preset ?? first?.name ?? "", values: {}, problem: null };
  try {
    if (query.clone) start = { ...start, ...(await get(`runs/${segment(query.clone)}/clone`)) };
  } catch (problem) {
    start.problem = problem;
  }
  const changes = JSON.parse(query.changes ?? "{}");
  const values = { ...start.values, ...changes };
  if (query.data)
    Object.assign(
      values,
      preparedValues({
        path: query.data,
        tokenizer: query.tokenizer,
        vocab_size: Number(query.vocab_size),
      }),
    );
  return { ...start, values, changed: Object.keys(changes) };
}

function layout(state, signal) {
  const problem = h("div");
  const status = h("p", { class: "small", role: "status" });
  const name = h("input", {
    id: "run-name",
    value: state.from ? nextName(state.from) : "",
    placeholder: t("new.name_hint"),
    autocomplete: "off",
    spellcheck: "false",
  });
  const device = choice(
    [
      ["", t("new.device_auto")],
      ["cpu", "CPU"],
      ["gpu", "GPU"],
      ["tpu", "TPU"],
    ],
    "",
    null,
    { id: "run-device" },
  );
  const startButton = button(t("new.start"), () => begin(), {
    class: "primary large",
    id: "start-run",
  });
  const view = { problem, status };
  const changed = (values) => ((state.values = values), redraw(), checkSoon());
  view.fields = formFields(state, changed, signal);
  view.size = sizeDial(state, changed, (error) => showRefusal(problem, error));
  view.command = commandBox((command) => check({ command }));
  view.estimate = estimatePanel(
    () => ({ preset: state.preset, values: state.values, device: device.value }),
    (action) => apply(action),
    signal,
  );
  view.presets = h("div", { class: "presets", role: "radiogroup", "aria-label": t("new.preset") });
  const redraw = () => {
    drawPresets(view.presets, state, choosePreset);
    view.fields.draw();
    view.size.draw();
  };
  async function choosePreset(preset) {
    const edited = Object.keys(state.values).length > 0;
    if (
      edited &&
      !(await confirmDialog(t("new.preset"), t("new.preset_ask", { preset }), t("new.preset_yes")))
    )
      return redraw();
    state.preset = preset;
    changed({});
  }
  function apply(action) {
    if (action.changes) changed({ ...state.values, ...action.changes });
    else if (action.action === "open_data") go("data");
  }
  // Checks may overtake each other and what is being typed: old answers don't count.
  let latest = 0;
  async function check(body = { preset: state.preset, values: state.values }) {
    latest += 1;
    const mine = latest;
    const asked = state.values;
    try {
      const answer = await post("form/check", body, { signal });
      if (mine !== latest || (asked !== state.values && body.command === undefined)) return;
      if (body.command !== undefined && answer.preset === undefined)
        return void showProblems(answer);
      Object.assign(state, {
        checked: answer,
        preset: answer.preset ?? state.preset,
        values: answer.values ?? state.values,
      });
      showProblems(answer);
      if (body.command !== undefined) redraw();
    } catch (error) {
      if (error.name !== "AbortError") showRefusal(problem, error);
    }
  }
  function showProblems(answer) {
    showRefusal(problem, null);
    startButton.disabled = !answer.ok;
    view.fields.problems(answer.problems ?? []);
    view.command.show(answer, name.value.trim());
    const loose = (answer.problems ?? []).filter(({ key }) => !key);
    put(
      status,
      answer.ok
        ? h("span", { class: "badge ok" }, t("new.valid"))
        : h("span", { class: "badge bad" }, t("new.problems", { n: answer.problems.length })),
      loose.map(({ message }) => h("span", { class: "problem" }, message)),
    );
  }
  const checkSoon = debounce(check, CHECK_MS);
  async function begin() {
    startButton.disabled = true;
    try {
      const answer = await post("form/check", { preset: state.preset, values: state.values });
      if (!answer.ok) return showProblems(answer);
      const { id } = await post("runs", {
        config: answer.config,
        name: name.value.trim(),
        device: device.value,
      });
      toast(t("runs.started"));
      go("run", [id]);
    } catch (error) {
      if (error.body?.problems) showProblems(error.body);
      showRefusal(problem, error);
    } finally {
      startButton.disabled = false;
    }
  }
  name.addEventListener("input", () => view.command.rename(name.value.trim()));
  if (state.problem) showRefusal(problem, state.problem);
  redraw();
  const side = h(
    "aside",
    { class: "sticky stack", "aria-label": t("new.summary") },
    h(
      "section",
      { class: "panel stack" },
      labelled(t("new.name"), name),
      labelled(t("new.device"), device),
      startButton,
      status,
      problem,
      h("p", { class: "faint" }, t("run.closing")),
    ),
    view.estimate.element,
    view.command.element,
  );
  const lead = state.from ? t("new.clone_of", { name: state.from }) : t("new.lead");
  const main = h(
    "div",
    { class: "stack wide" },
    h("section", { class: "stack tight" }, h("h2", {}, t("new.preset")), view.presets),
    view.size.element,
    view.fields.element,
  );
  const element = h(
    "div",
    {},
    h("header", { class: "page-head" }, h("div", {}, h("h1", {}, t("nav.new")), h("p", {}, lead))),
    changesCard(state),
    h("div", { class: "columns" }, main, side),
  );
  return { ...view, element, check };
}

// What a card's button has changed stays in sight until the run is started.
function changesCard(state) {
  if (!state.changed.length) return null;
  const words = state.changed.map((key) =>
    h("li", {}, h("code", {}, `${key} = ${JSON.stringify(state.values[key])}`)),
  );
  return h(
    "div",
    { class: "note-box stack tight applied", role: "status" },
    h("b", {}, t("new.changed_by_card")),
    h("ul", { class: "hints" }, words),
  );
}

function drawPresets(holder, state, onchoose) {
  const rank = ({ name }) => (FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length);
  const cards = [...state.schema.presets]
    .sort((a, b) => rank(a) - rank(b))
    .map((preset) => {
      const input = h("input", {
        type: "radio",
        name: "preset",
        value: preset.name,
        checked: preset.name === state.preset,
        onchange: () => onchoose(preset.name),
      });
      return h(
        "label",
        { class: "preset" },
        input,
        h("b", {}, preset.name),
        h("span", { class: "faint" }, translated(`preset.${preset.name}`, preset.summary)),
      );
    });
  put(holder, cards);
}

function nextName(id) {
  const [, stem, digits] = id.match(/^(.*?)(?:-(\d+))?$/);
  return `${stem}-${Number(digits ?? 1) + 1}`;
}
