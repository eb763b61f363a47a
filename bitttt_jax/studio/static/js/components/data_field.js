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

/** A control for `data.sources`: {element, focusable, show}. */
export function dataField(onvalue) {
  const input = h("input", { type: "text", spellcheck: "false", autocomplete: "off" });
  const send = (text) => onvalue(text.split(",").map((part) => part.trim()).filter(Boolean));
  input.addEventListener("input", () => send(input.value));
  const pick = (path) => {
    input.value = path;
    send(path);
  };
  const element = h("div", { class: "stack tight" }, input, h("div", {}, button([icon("data"), t("form.choose_data")], () => chooseData(pick), { id: "choose-data" })));
  return { element, focusable: input, show: (value) => document.activeElement !== input && (input.value = toText(value)) };
}

async function chooseData(pick) {
  const prepared = h("div", { class: "stack tight" }, h("p", { class: "faint" }, "…"));
  const choose = (path) => (pick(path), dialog.close());
  const browser = fileBrowser((entry) => choose(entry.path));
  const own = h("section", { class: "stack tight" }, h("h3", {}, t("data.files")), browser.element);
  const dialog = openDialog(t("form.choose_data"), h("div", { class: "stack wide" }, h("section", { class: "stack tight" }, h("h3", {}, t("data.prepared")), prepared), own));
  browser.open("");
  try {
    const { prepared: list } = await get("data");
    put(prepared, entry(t("form.standard_library"), STANDARD_LIBRARY, t("form.standard_library.why"), choose), list.map((data) => entry(data.name, data.path, t("data.tokens", { n: count(data.tokens) }), choose)));
  } catch (error) {
    put(prepared, refusal(error));
  }
}

function entry(name, path, words, choose) {
  return h("button", { type: "button", class: "file", onclick: () => choose(path) }, icon("data"), h("span", { class: "name" }, name), h("span", { class: "faint" }, words));
}
