// The playground: talk with a model, or let two continue the same text side by side.

import { get } from "../api.js";
import { button, segments } from "../components/basics.js";
import { playPane } from "../components/play_pane.js";
import { sampling } from "../components/sampling.js";
import { refusal } from "../components/problem.js";
import { empty } from "../components/run_facts.js";
import { setTitle } from "../components/shell.js";
import { h, put } from "../dom.js";
import { t } from "../i18n.js";
import { link, note } from "../router.js";

// Text in which the same names come again and again, so that there is something to learn from it.
const EXAMPLE = ["circle", "square", "triangle", "hexagon", "ellipse", "polygon", "star", "ring"]
  .map(
    (name) =>
      `class Shape_${name}:\n    """A ${name} on the canvas of the painter."""\n\n    def __init__(self, painter, colour="red"):\n        self.painter = painter\n        self.colour = colour\n\n    def draw_${name}(self, width, height):\n        self.painter.begin("${name}", self.colour)\n        self.painter.outline(width, height)\n        self.painter.finish("${name}")\n\n`,
  )
  .join("");

export async function drawPlay(main, { query }, signal) {
  setTitle(t("nav.play"));
  const head = h(
    "header",
    { class: "page-head" },
    h("div", {}, h("h1", {}, t("nav.play")), h("p", {}, t("play.lead"))),
  );
  main.append(head);
  let models;
  try {
    ({ models } = await get("models", {}, { signal }));
  } catch (error) {
    if (error.name !== "AbortError") main.append(refusal(error));
    return;
  }
  if (!models.length)
    return void main.append(
      h(
        "div",
        { class: "panel" },
        empty(
          t("play.no_models"),
          t("play.no_models.why"),
          h("a", { class: "button primary", href: link("new") }, t("nav.new")),
        ),
      ),
    );
  const settings = sampling();
  const state = { models, settings, panes: [] };
  const panes = h("div", { class: "panes" });
  const compare = button(t("play.compare"), () => setPanes(state.panes.length === 1 ? 2 : 1), {
    id: "compare",
    "aria-pressed": false,
  });
  head.append(h("div", { class: "row" }, compare));
  function setPanes(count) {
    while (state.panes.length > count) state.panes.pop().close();
    while (state.panes.length < count) {
      const place = state.panes.length;
      const wanted = {
        model: query[place ? "model2" : "model"],
        step: query[place ? "step2" : "step"],
      };
      const onchoice = (model, step) => {
        query[place ? "model2" : "model"] = model;
        query[place ? "step2" : "step"] = step ?? "";
        note("play", [], query);
      };
      state.panes.push(playPane({ models, settings, wanted, place, onchoice }, signal));
    }
    compare.setAttribute("aria-pressed", String(count === 2));
    put(
      panes,
      state.panes.map((pane) => pane.element),
    );
    panes.classList.toggle("two", count === 2);
  }
  setPanes(query.model2 ? 2 : 1);
  main.append(panes, composer(state, settings));
}

// One place to write in, for all panes.
function composer(state, settings) {
  const area = h("textarea", {
    rows: 2,
    id: "prompt",
    "aria-label": t("play.prompt"),
    placeholder: t("play.prompt_hint"),
  });
  const send = button(t("play.send"), () => act("write"), { class: "primary", id: "send" });
  const stop = button(t("play.stop"), () => state.panes.forEach((pane) => pane.stop()), {
    id: "stop-reply",
    hidden: true,
  });
  const read = button(t("play.read_start"), () => act("read"), {
    class: "primary",
    id: "read",
    hidden: true,
  });
  const example = button(t("play.example"), () => ((area.value = EXAMPLE), area.focus()), {
    hidden: true,
    id: "example",
  });
  const words = h("p", { class: "faint" }, t("play.write_why"));
  const mode = segments(
    [
      ["write", t("play.write")],
      ["read", t("play.read")],
    ],
    "write",
    (value) => {
      const reading = value === "read";
      send.hidden = reading;
      read.hidden = example.hidden = !reading;
      area.rows = reading ? 4 : 2;
      area.placeholder = t(reading ? "play.read_hint" : "play.prompt_hint");
      put(words, t(reading ? "play.read_why" : "play.write_why"));
    },
    t("play.do"),
  );
  async function act(what) {
    const text = area.value;
    if (!text && what === "read") return;
    send.disabled = read.disabled = true;
    stop.hidden = false;
    area.value = "";
    await Promise.all(state.panes.map((pane) => pane[what](text)));
    send.disabled = read.disabled = false;
    stop.hidden = true;
  }
  area.addEventListener("keydown", (event) => {
    const sends = event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.isComposing;
    if (!sends || send.disabled) return;
    event.preventDefault();
    act(read.hidden ? "write" : "read");
  });
  return h(
    "section",
    { class: "composer panel stack tight", "aria-label": t("play.prompt") },
    h("div", { class: "row apart" }, mode.element, words),
    area,
    h(
      "div",
      { class: "row apart" },
      h(
        "div",
        { class: "row" },
        send,
        read,
        stop,
        example,
        h("span", { class: "faint" }, "Ctrl Enter"),
      ),
    ),
    settings.element,
  );
}
