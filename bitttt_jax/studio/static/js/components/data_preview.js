// What is in the chosen text: its first documents, what cleaning takes away, and for conversations
// the template, with the tokens that count for the loss marked.

import { post } from "../api.js";
import { debounce, h, put } from "../dom.js";
import { bytes, number } from "../format.js";
import { t, translated } from "../i18n.js";
import { choice, labelled } from "./basics.js";
import { empty } from "./run_facts.js";
import { refusal } from "./problem.js";

const WAIT_MS = 300;
const TEMPLATES = ["", "roles", "chatml"];

/** The preview; `refresh()` after a change of what is chosen. */
export function previewPanel(state, signal) {
  const holder = h("div", { class: "stack", role: "status", "aria-live": "polite" });
  let latest = 0;
  const look = debounce(async () => {
    latest += 1;
    const mine = latest;
    if (!state.sources.length)
      return void put(holder, empty(t("preview.none"), t("preview.none.why")));
    holder.setAttribute("aria-busy", "true");
    try {
      const answer = await post(
        "data/preview",
        { sources: state.sources, clean: state.clean, template: state.template },
        { signal },
      );
      if (mine === latest) draw(holder, answer, state, look);
    } catch (error) {
      if (error.name !== "AbortError" && mine === latest) put(holder, refusal(error));
    } finally {
      holder.removeAttribute("aria-busy");
    }
  }, WAIT_MS);
  look();
  return { element: holder, refresh: look };
}

function draw(holder, answer, state, look) {
  const { files, bytes: size, kind, documents = [], problems = [], messages = [] } = answer;
  const total = h(
    "p",
    { class: "num" },
    t("preview.total", { files: number(files), bytes: bytes(size), kind: kind ?? "" }),
  );
  const wrong = problems.map((problem) =>
    h(
      "div",
      { class: "card warn compact" },
      typeof problem === "string" ? problem : (problem.message ?? problem.what),
    ),
  );
  put(
    holder,
    total,
    wrong,
    messages.length > 0 && conversations(messages, state, look),
    documents.length > 0 && !messages.length && documents.map(documentView),
  );
}

// A document as the model will read it, with what cleaning has done to it.
function documentView({ origin, characters, text, after, changes = [], removed }) {
  const before =
    changes.length > 0 &&
    h("details", {}, h("summary", {}, t("preview.before")), h("pre", { class: "before" }, text));
  const words = removed
    ? [t("preview.left_out", { why: removed })]
    : changes.map((change) => translated(`preview.change.${change}`, change));
  return h(
    "article",
    { class: `document ${removed ? "dropped" : ""}` },
    h(
      "header",
      { class: "row apart small" },
      h("code", { class: "wrap", title: origin }, short(origin)),
      h("span", { class: "faint num" }, t("preview.characters", { n: number(characters) })),
    ),
    h("pre", { tabindex: 0 }, removed ? text : (after ?? text)),
    words.length > 0 &&
      h(
        "div",
        { class: "removed small" },
        h("b", {}, t("preview.removed")),
        " ",
        words.join(", "),
        before,
      ),
  );
}

const short = (origin) => origin.split("/").slice(-2).join("/");

function conversations(messages, state, look) {
  const template = choice(
    TEMPLATES.map((name) => [name, t(`template.${name || "none"}`)]),
    state.template,
    (value) => ((state.template = value), look()),
    { id: "chat-template" },
  );
  const views = messages.map(({ origin, segments }) =>
    h(
      "article",
      { class: "document" },
      h("header", { class: "small" }, h("code", { class: "wrap", title: origin }, short(origin))),
      h(
        "pre",
        { class: "conversation", tabindex: 0 },
        segments.map(({ text, role, learned }) =>
          h(
            "span",
            {
              class: learned ? "learned" : "read-only",
              title: t(learned ? "template.learned" : "template.read", { role: role ?? "" }),
            },
            text,
          ),
        ),
      ),
    ),
  );
  const legend = h(
    "p",
    { class: "small row" },
    h("span", { class: "learned sample" }, t("template.learned_short")),
    h("span", { class: "read-only sample" }, t("template.read_short")),
  );
  return h(
    "section",
    { class: "stack" },
    labelled(t("template.title"), template, t("template.why")),
    legend,
    views,
  );
}
