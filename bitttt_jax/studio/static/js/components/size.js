// One dial for the size of the model; the server says which fields it moves.

import { post } from "../api.js";
import { debounce, h, put } from "../dom.js";
import { count } from "../format.js";
import { t } from "../i18n.js";

/** The dial; it is set to the size that fits the values, as far as one does. */
export function sizeDial(state, onchange, onerror) {
  const { sizes } = state.schema;
  const words = h("output", { class: "size-words", for: "size-dial" });
  const dial = h("input", {
    type: "range",
    id: "size-dial",
    min: 0,
    max: sizes.length - 1,
    step: 1,
    list: "sizes",
    oninput: () => (describe(), turn()),
  });
  const labels = h(
    "div",
    { class: "size-labels faint", "aria-hidden": "true" },
    sizes.map((size) => h("span", {}, size.label ?? size.name)),
  );
  let touched = false;
  const turn = debounce(async () => {
    touched = true;
    try {
      const { values } = await post("form/size", {
        preset: state.preset,
        values: state.values,
        size: sizes[Number(dial.value)].name,
      });
      onchange(values);
    } catch (error) {
      onerror(error);
    }
  }, 150);
  function describe() {
    const size = sizes[Number(dial.value)];
    const about = size && t("size.parameters", { n: count(size.parameters) });
    dial.setAttribute("aria-valuetext", size ? `${size.label ?? size.name}, ${about}` : "");
    put(words, touched || size?.current ? about : t("size.untouched"));
  }
  const draw = () => describe();
  dial.value = Math.max(
    0,
    sizes.findIndex((size) => size.current),
  );
  const element = h(
    "section",
    { class: "panel size", hidden: !sizes.length },
    h(
      "div",
      { class: "row apart" },
      h("label", { for: "size-dial" }, h("h2", {}, t("size.title"))),
      words,
    ),
    dial,
    labels,
    h("p", { class: "faint" }, t("size.hint")),
  );
  return { element, draw };
}
