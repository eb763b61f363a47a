// How the next token is drawn: the controls, with what each of them does.

import { h } from "../dom.js";
import { t } from "../i18n.js";
import { button, labelled } from "./basics.js";

// name: [initial, low, high, step]
const KNOBS = {
  temperature: [0.8, 0, 2, 0.05],
  top_p: [0.95, 0.05, 1, 0.01],
  top_k: [0, 0, 200, 1],
  min_p: [0, 0, 0.5, 0.01],
  repetition_penalty: [1, 1, 2, 0.01],
  max_tokens: [256, 1, 4096, 1],
};

/** The controls; `values()` is what a request takes. */
export function sampling() {
  const inputs = Object.fromEntries(
    Object.entries(KNOBS).map(([name, [initial, min, max, step]]) => [
      name,
      h("input", {
        type: "number",
        class: "num",
        id: `sampling-${name}`,
        min,
        max,
        step,
        value: initial,
      }),
    ]),
  );
  const seed = h("input", {
    type: "number",
    class: "num",
    id: "sampling-seed",
    min: 0,
    step: 1,
    placeholder: t("sampling.seed_hint"),
  });
  const stop = h("input", { id: "sampling-stop", placeholder: "\\n\\n" });
  const fields = Object.entries(inputs).map(([name, input]) =>
    labelled(t(`sampling.${name}`), input, t(`sampling.${name}.why`)),
  );
  const reset = button(
    t("form.reset"),
    () => Object.entries(KNOBS).forEach(([name, [initial]]) => (inputs[name].value = initial)),
    { class: "quiet" },
  );
  const element = h(
    "details",
    { class: "sampling" },
    h("summary", {}, t("sampling.title")),
    h(
      "div",
      { class: "sampling-grid" },
      fields,
      labelled(t("sampling.seed"), seed, t("sampling.seed.why")),
      labelled(t("sampling.stop"), stop, t("sampling.stop.why")),
    ),
    reset,
  );
  const values = () => {
    const chosen = Object.fromEntries(
      Object.entries(inputs).map(([name, input]) => [name, Number(input.value)]),
    );
    if (seed.value !== "") chosen.seed = Number(seed.value);
    if (stop.value) chosen.stop = [stop.value.replaceAll("\\n", "\n").replaceAll("\\t", "\t")];
    return chosen;
  };
  return { element, values };
}
