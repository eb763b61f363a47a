// How text becomes tokens: bytes, a new vocabulary, or one that is there; with a field to try it.

import { get, post } from "../api.js";
import { debounce, h, put } from "../dom.js";
import { number } from "../format.js";
import { t } from "../i18n.js";
import { labelled } from "./basics.js";
import { refusal } from "./problem.js";

/** The panel; it sets `state.tokenizer` and calls `changed()`. */
export function tokenizerPanel(state, changed, signal) {
  const size = h("input", {
    type: "text",
    inputmode: "numeric",
    value: "4096",
    class: "num",
    id: "vocab-size",
  });
  const files = h("select", { id: "tokenizer-file" });
  const sizeRow = labelled(t("tokenizer.size"), size, t("tokenizer.size.why"));
  const fileRow = labelled(t("tokenizer.file"), files);
  const trial = tokenTrial(() => files.value, signal);
  const kinds = ["bytes", "bpe", "file"].map((kind) => {
    const input = h("input", {
      type: "radio",
      name: "tokenizer",
      value: kind,
      checked: kind === state.tokenizer.kind,
      onchange: () => choose(kind),
    });
    return h(
      "label",
      { class: "preset" },
      input,
      h("b", {}, t(`tokenizer.${kind}`)),
      h("span", { class: "faint" }, t(`tokenizer.${kind}.why`)),
    );
  });
  function choose(kind) {
    sizeRow.hidden = kind !== "bpe";
    fileRow.hidden = trial.element.hidden = kind !== "file";
    const chosen = {
      bytes: {},
      bpe: { vocab_size: Number(size.value) || size.value },
      file: { path: files.value },
    }[kind];
    state.tokenizer = { kind, ...chosen };
    changed();
    if (kind === "file") trial.look();
  }
  size.addEventListener("input", () => choose("bpe"));
  files.addEventListener("change", () => choose("file"));
  choose(state.tokenizer.kind);
  get("tokenizers", {}, { signal }).then(
    ({ tokenizers }) => {
      const there = tokenizers.filter(({ path }) => path);
      put(
        files,
        there.map(({ name, path, vocab_size: n }) =>
          h("option", { value: path }, t("tokenizer.option", { name, n: number(n) })),
        ),
      );
      kinds[2].querySelector("input").disabled = !there.length;
    },
    () => {},
  );
  return h(
    "div",
    { class: "stack" },
    h("div", { class: "presets", role: "radiogroup", "aria-label": t("data.tokenizer") }, kinds),
    sizeRow,
    fileRow,
    trial.element,
  );
}

function tokenTrial(tokenizer, signal) {
  const area = h("textarea", {
    rows: 2,
    "aria-label": t("tokenizer.try"),
    value: t("tokenizer.example"),
  });
  const output = h("div", { class: "tokens" });
  const look = debounce(async () => {
    if (!tokenizer()) return;
    try {
      const { tokens } = await post(
        "data/tokenize",
        { tokenizer: tokenizer(), text: area.value },
        { signal },
      );
      put(
        output,
        tokens.map(({ id, text }) => h("span", { class: "token", title: String(id) }, text)),
        h("p", { class: "faint num" }, t("tokenizer.count", { n: number(tokens.length) })),
      );
    } catch (error) {
      if (error.name !== "AbortError") put(output, refusal(error));
    }
  }, 250);
  area.addEventListener("input", look);
  return {
    element: h(
      "div",
      { class: "stack tight", hidden: true },
      h("h3", {}, t("tokenizer.try")),
      area,
      output,
    ),
    look,
  };
}
