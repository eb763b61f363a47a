// What went wrong, in words: a refusal of the server, and the card of a failed run or job.

import { h } from "../dom.js";
import { t, translated } from "../i18n.js";
import { button, copy } from "./basics.js";

/** A refusal: what, why, and what to try. */
export function refusal(error) {
  if (error.status === 0) return notice(t("error.offline"), t("error.offline.why"));
  if (error.status === undefined) return notice(t("error.page"), String(error.message ?? error));
  return notice(error.what, error.why, error.fix);
}

/** Shows a refusal in an element, or clears it. */
export function showRefusal(holder, error) {
  holder.replaceChildren(...(error ? [refusal(error)] : []));
}

function notice(what, why, fix) {
  return h(
    "div",
    { class: "card bad compact", role: "alert" },
    h("h3", {}, what),
    why && h("p", { class: "small" }, why),
    fix && h("p", { class: "small" }, `${t("card.try")} ${fix}`),
  );
}

/**
 * The card of a failure.
 *
 * @param {object} card as the server answers it.
 * @param {(action) => void} act does what a button says: changes fields, resumes, clones, ….
 */
export function errorCard(card, act) {
  const heading = translated(`card.kind.${card.kind}`, card.kind);
  // The words of the program are English; this much is said in the reader's language too.
  const means = translated(`card.means.${card.kind}`, "");
  const actions = (card.actions ?? []).map((action, index) =>
    button(actionLabel(action), () => act(action), {
      class: index === 0 ? "primary" : "",
      dataset: { action: action.label_key },
    }),
  );
  return h(
    "section",
    { class: "card bad", role: "alert", "aria-label": heading, dataset: { kind: card.kind } },
    h("p", { class: "eyebrow" }, heading),
    h("h2", {}, card.title),
    means && h("p", {}, means),
    card.why && h("p", {}, card.why),
    card.detail && card.detail !== card.why && h("p", { class: "small soft mono" }, card.detail),
    card.hints?.length > 0 &&
      h(
        "div",
        { class: "small" },
        h("h3", {}, t("card.try")),
        h(
          "ul",
          { class: "hints" },
          card.hints.map((hint) => h("li", {}, hint)),
        ),
      ),
    actions.length > 0 && h("div", { class: "row" }, actions),
    changesNote(card.actions),
    h(
      "div",
      { class: "row" },
      button(t("card.copy"), () => copy(card.diagnostics ?? card.title), { class: "quiet" }),
      card.exit_code !== null &&
        card.exit_code !== undefined &&
        h("span", { class: "faint" }, t("card.exit_code", { code: card.exit_code })),
    ),
    folded(t("card.traceback"), card.traceback),
    folded(t("card.tail"), card.tail?.join("\n")),
  );
}

function actionLabel({ label_key: key, label, changes }) {
  return translated(`card.action.${key}`, label).replace(
    "{value}",
    String(Object.values(changes ?? {})[0] ?? ""),
  );
}

function changesNote(actions = []) {
  return (
    actions.some((action) => action.changes) && h("p", { class: "faint" }, t("card.changes_note"))
  );
}

function folded(title, text) {
  return (
    text && h("details", {}, h("summary", {}, title), h("pre", { class: "block small" }, text))
  );
}
