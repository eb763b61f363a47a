// The command that does the same as the form: to copy, and to paste one back into the form.

import { h } from "../dom.js";
import { t } from "../i18n.js";
import { button, copy } from "./basics.js";

/** The box; `onpaste(command)` is called with a command to read into the form. */
export function commandBox(onpaste) {
  const state = { command: "", name: "" };
  const shown = h("pre", {
    class: "block command",
    id: "command",
    tabindex: 0,
    "aria-label": t("command.title"),
  });
  const area = h("textarea", {
    rows: 4,
    id: "command-paste",
    "aria-label": t("command.paste"),
    placeholder: "bitttt train --config=quickstart --config.optim.lr=1e-3",
    spellcheck: "false",
    class: "mono",
  });
  const paste = h(
    "details",
    {},
    h("summary", {}, t("command.paste")),
    h(
      "div",
      { class: "stack tight" },
      area,
      h("p", { class: "faint" }, t("command.paste_hint")),
      h(
        "div",
        {},
        button(t("command.read"), () => area.value.trim() && onpaste(area.value.trim()), {
          id: "command-read",
        }),
      ),
    ),
  );
  const draw = () => {
    const workdir =
      state.name && !state.command.includes("--workdir")
        ? ` --workdir=runs/${quote(state.name)}`
        : "";
    // A flag a line: shells and the form take the line ends as they are.
    shown.textContent = (state.command + workdir).replaceAll(
      / (?=--(config\.|workdir))/g,
      " \\\n  ",
    );
  };
  const element = h(
    "section",
    { class: "panel stack tight" },
    h(
      "div",
      { class: "row apart" },
      h("h2", {}, t("command.title")),
      button(t("copy"), () => copy(shown.textContent)),
    ),
    h("p", { class: "faint" }, t("command.hint")),
    shown,
    paste,
  );
  const show = ({ command }, name) => {
    if (command) state.command = command;
    state.name = name;
    draw();
  };
  const rename = (name) => ((state.name = name), draw());
  return { element, show, rename };
}

const quote = (text) => (/^[\w./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
