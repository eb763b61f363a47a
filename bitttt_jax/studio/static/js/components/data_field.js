// The field for the text to train on: prepared data, files of the declared folders, or any path.

import { get } from "../api.js";
import { h, put } from "../dom.js";
import { count } from "../format.js";
import { t } from "../i18n.js";
import { button, icon, openDialog } from "./basics.js";
import { fileBrowser } from "./files.js";
import { refusal } from "./problem.js";
import { toText } from "./values.js";

const STANDARD_LIBRARY = "python-stdlib";

/** What training on prepared data means for the settings: its path, and the tokenizer it has. */
export function preparedValues({ path, tokenizer, vocab_size: size }) {
  const values = { "data.sources.0.path": path };
  if (tokenizer === "bytes") values["data.tokenizer.kind"] = "bytes";
  if (tokenizer === "bpe")
    Object.assign(values, { "data.tokenizer.kind": "bpe", "data.tokenizer.vocab_size": size });
  if (tokenizer === "file")
    Object.assign(values, {
      "data.tokenizer.kind": "file",
      "data.tokenizer.path": `${path}/tokenizer.json`,
    });
  return values;
}

/** A control for the path of a source; `onvalues(values)` where more than the path changes. */
export function dataField(onvalue, onvalues) {
  const input = h("input", { type: "text", spellcheck: "false", autocomplete: "off" });
  input.addEventListener("input", () => onvalue(input.value));
  const pick = (values) => {
    input.value = values["data.sources.0.path"];
    onvalues(values);
  };
  const element = h(
    "div",
    { class: "stack tight" },
    input,
    h(
      "div",
      {},
      button([icon("data"), t("form.choose_data")], () => chooseData(pick), { id: "choose-data" }),
    ),
  );
  return {
    element,
    focusable: input,
    show: (value) => document.activeElement !== input && (input.value = toText(value)),
  };
}

async function chooseData(pick) {
  const prepared = h("div", { class: "stack tight" }, h("p", { class: "faint" }, "…"));
  const choose = (values) => (pick(values), dialog.close());
  const browser = fileBrowser((file) => choose({ "data.sources.0.path": file.path }));
  const own = h("section", { class: "stack tight" }, h("h3", {}, t("data.files")), browser.element);
  const dialog = openDialog(
    t("form.choose_data"),
    h(
      "div",
      { class: "stack wide" },
      h("section", { class: "stack tight" }, h("h3", {}, t("data.prepared")), prepared),
      own,
    ),
  );
  browser.open("");
  try {
    const { prepared: list } = await get("data");
    put(
      prepared,
      entry(t("form.standard_library"), t("form.standard_library.why"), () =>
        choose({ "data.sources.0.path": STANDARD_LIBRARY }),
      ),
      list.map((data) =>
        entry(data.name, t("data.tokens", { n: count(data.tokens) }), () =>
          choose(preparedValues(data)),
        ),
      ),
    );
  } catch (error) {
    put(prepared, refusal(error));
  }
}

function entry(name, words, onclick) {
  return h(
    "button",
    { type: "button", class: "file", onclick },
    icon("data"),
    h("span", { class: "name" }, name),
    h("span", { class: "faint" }, words),
  );
}
