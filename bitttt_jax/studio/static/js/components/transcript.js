// What has been said: turns of a conversation, or one text that both have written.

import { h, perFrame, put } from "../dom.js";
import { t } from "../i18n.js";

/** The text; `clear(mode)`, `add(role, text)` → {append, wait}. */
export function transcript() {
  const element = h("div", {
    class: "transcript",
    role: "log",
    tabindex: 0,
    "aria-label": t("play.transcript"),
  });
  let mode = "completion";
  const follow = perFrame(() => (element.scrollTop = element.scrollHeight));
  function clear(next) {
    mode = next;
    element.className = `transcript ${mode}`;
    put(
      element,
      h(
        "p",
        { class: "faint hint" },
        t(mode === "chat" ? "play.empty_chat" : "play.empty_completion"),
      ),
    );
  }
  function add(role, text) {
    element.querySelector(".hint")?.remove();
    const words = h("span", { class: "words" }, text);
    const own = mode === "chat" && h("span", { class: "eyebrow" }, t(`play.role.${role}`));
    const turn = h(mode === "chat" ? "article" : "span", { class: `turn ${role}` }, own, words);
    element.append(turn);
    follow();
    // One text node that grows: never HTML, and no layout of what is there already.
    const append = (more) => (words.append(more), follow());
    return { append, wait: (waiting) => turn.classList.toggle("waiting", waiting) };
  }
  clear(mode);
  return { element, clear, add };
}
