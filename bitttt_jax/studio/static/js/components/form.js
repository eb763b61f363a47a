// The form, drawn from the configuration's schema: each field with its help, its problem, a dot
// where it differs from the preset, and a way back.

import { h, put, uniqueId } from "../dom.js";
import { fieldWords, t, translated } from "../i18n.js";
import { button, choice, segments } from "./basics.js";
import { dataField } from "./data_field.js";
import { fromInput, sameValue, toText } from "./values.js";

/** The fields; `draw()` after changes from outside, `problems(list)` after a check. */
export function formFields(state, onchange) {
  const view = { level: "basic", search: "", rows: new Map(), problems: [] };
  const holder = h("div", { class: "stack wide" });
  const search = h("input", {
    type: "search",
    id: "field-search",
    placeholder: t("form.search"),
    "aria-label": t("form.search"),
    oninput: () => ((view.search = search.value.trim().toLowerCase()), draw()),
  });
  const level = segments(
    [
      ["basic", t("form.basic")],
      ["advanced", t("form.advanced")],
    ],
    view.level,
    (value) => ((view.level = value), draw()),
    t("form.level"),
  );
  const setAll = (changes) => {
    const values = { ...state.values, ...changes };
    for (const field of state.schema.fields) {
      if (field.key in changes && sameValue(changes[field.key], presetValue(state, field)))
        delete values[field.key];
    }
    onchange(values);
  };
  function draw() {
    const shown = state.schema.fields.filter((field) => isShown(field, state, view));
    // Few fields are shown together, many by their sections.
    const sectionOf = ({ group }) =>
      view.level === "basic" && !view.search ? group.split(".")[0] : group;
    const groups = Map.groupBy(shown, sectionOf);
    for (const field of shown) {
      if (!view.rows.has(field.key)) view.rows.set(field.key, fieldRow(field, setAll));
      view.rows
        .get(field.key)
        .show(currentValue(state, field), field.key in state.values, presetValue(state, field));
    }
    const sections = [...groups].map(([group, fields]) =>
      h(
        "fieldset",
        { class: "panel fields" },
        h("legend", {}, translated(`group.${group || "top"}`, group)),
        fields.map((field) => view.rows.get(field.key).element),
      ),
    );
    keepFocus(() =>
      put(holder, sections, !sections.length && h("p", { class: "soft" }, t("form.nothing"))),
    );
    showProblems();
  }
  function showProblems() {
    for (const [key, row] of view.rows)
      row.problem(view.problems.filter((problem) => problem.key === key));
  }
  function problems(list) {
    const keys = new Set(list.map(({ key }) => key).filter(Boolean));
    const wasShown = view.problems.map(({ key }) => key).join();
    view.problems = list;
    if ([...keys].join() !== wasShown)
      draw(); // a hidden field with a problem comes into sight
    else showProblems();
  }
  const element = h(
    "div",
    { class: "stack" },
    h(
      "div",
      { class: "row apart form-tools" },
      h("h2", {}, t("form.title")),
      h("div", { class: "row" }, search, level.element),
    ),
    holder,
  );
  return { element, draw, problems };
}

/** Fields on their own, at their defaults; `onvalue(key, value)` for each change. */
export function plainFields(fields, onvalue) {
  const rows = fields.map((field) => {
    const row = fieldRow(field, ({ [field.key]: value }) => {
      row.show(value, !sameValue(value, field.default), field.default);
      onvalue(field.key, value);
    });
    row.show(field.default, false, field.default);
    return row.element;
  });
  return h("div", { class: "fields" }, rows);
}

function isShown(field, state, view) {
  if (view.search) {
    const { title, help } = fieldWords(field);
    return [field.key, title, help].some((text) => text?.toLowerCase().includes(view.search));
  }
  const hasProblem = view.problems.some(({ key }) => key === field.key);
  return view.level === "advanced" || !field.advanced || field.key in state.values || hasProblem;
}

/** The value that a field has in the chosen preset. */
export function presetValue(state, field) {
  const preset = state.schema.presets.find(({ name }) => name === state.preset);
  return preset?.values && field.key in preset.values ? preset.values[field.key] : field.default;
}

const currentValue = (state, field) =>
  field.key in state.values ? state.values[field.key] : presetValue(state, field);

function fieldRow(field, setAll) {
  const set = (value) => setAll({ [field.key]: value });
  const { title, help } = fieldWords(field);
  const id = uniqueId("field");
  const control = controlOf(field, set, setAll);
  control.focusable.id = id;
  control.focusable.dataset.key = field.key;
  control.focusable.setAttribute("aria-describedby", `${id}-help ${id}-problem`);
  const dot = h("i", { class: "dot", title: t("form.modified"), hidden: true });
  const reset = button(t("form.reset"), null, {
    class: "quiet reset",
    hidden: true,
    "aria-label": t("form.reset_name", { name: title }),
  });
  const problem = h("p", { class: "problem", id: `${id}-problem`, hidden: true });
  const element = h(
    "div",
    { class: `field type-${field.type}`, dataset: { field: field.key } },
    h(
      "div",
      { class: "field-words" },
      h("label", { for: id }, dot, title),
      h("code", { class: "faint" }, field.key),
      h("p", { class: "faint", id: `${id}-help` }, help),
    ),
    h("div", { class: "field-control" }, control.element, reset, problem),
  );
  let base = null;
  reset.addEventListener("click", () => set(base));
  return {
    element,
    show(value, modified, preset) {
      base = preset;
      control.show(value);
      dot.hidden = reset.hidden = !modified;
      reset.title = t("form.reset_to", { value: toText(preset) });
    },
    problem(list) {
      problem.hidden = !list.length;
      problem.textContent = list.map(({ message }) => message).join("\n");
      control.focusable.setAttribute("aria-invalid", String(list.length > 0));
    },
  };
}

function controlOf(field, onvalue, onvalues) {
  if (field.key === "data.sources.0.path") return dataField(onvalue, onvalues);
  if (field.type === "bool") {
    const input = h("input", { type: "checkbox", onchange: () => onvalue(input.checked) });
    return {
      element: h("span", { class: "switch" }, input),
      focusable: input,
      show: (value) => (input.checked = value === true),
    };
  }
  if (field.type === "choice") {
    const select = choice(
      field.choices.map((option) => [option, option]),
      null,
      (value) => onvalue(value),
    );
    return { element: select, focusable: select, show: (value) => (select.value = value) };
  }
  const numeric = field.type === "int" || field.type === "float";
  const input = h("input", {
    type: "text",
    inputmode: numeric ? "decimal" : null,
    class: numeric ? "num" : "",
    spellcheck: "false",
    autocomplete: "off",
  });
  input.addEventListener("input", () => onvalue(fromInput(field, input.value)));
  const show = (value) => {
    if (document.activeElement !== input) input.value = toText(value); // not under the typing hand
  };
  return { element: input, focusable: input, show };
}

function keepFocus(redraw) {
  const focused = document.activeElement;
  const range =
    focused?.selectionStart !== undefined && focused.type === "text"
      ? [focused.selectionStart, focused.selectionEnd]
      : null;
  redraw();
  if (focused && focused !== document.activeElement && focused.isConnected) {
    focused.focus({ preventScroll: true });
    if (range) focused.setSelectionRange(...range);
  }
}
