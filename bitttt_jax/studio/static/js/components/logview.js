// The end of a log, as it is written: it follows until the reader scrolls up.

import { h, perFrame } from "../dom.js";
import { t } from "../i18n.js";

const MOST_LINES = 1000;

/** A view of lines; `append(lines)`, `replace(lines)`. */
export function logView(label, downloadUrl) {
  let lines = [];
  let following = true;
  let wanted = "";
  const output = h("pre", { class: "log", role: "log", "aria-label": label, tabindex: 0 });
  const search = h("input", {
    type: "search",
    placeholder: t("log.search"),
    "aria-label": t("log.search"),
    oninput: () => ((wanted = search.value.toLowerCase()), draw()),
  });
  const follow = h("input", {
    type: "checkbox",
    checked: true,
    onchange: () => ((following = follow.checked), draw()),
  });
  output.addEventListener("scroll", () => {
    following = output.scrollHeight - output.scrollTop - output.clientHeight < 30;
    follow.checked = following;
  });
  const draw = perFrame(() => {
    const shown = wanted ? lines.filter((line) => line.toLowerCase().includes(wanted)) : lines;
    output.textContent = shown.join("\n") || t(wanted ? "log.none" : "log.empty");
    if (following) output.scrollTop = output.scrollHeight;
  });
  const set = (all) => ((lines = all.slice(-MOST_LINES)), draw());
  const element = h(
    "div",
    { class: "panel flush log-panel" },
    h(
      "div",
      { class: "row log-head" },
      search,
      h("label", { class: "check" }, follow, t("log.follow")),
      downloadUrl &&
        h("a", { class: "button quiet", href: downloadUrl, download: "" }, t("log.download")),
    ),
    output,
  );
  return { element, replace: set, append: (more) => set(lines.concat(more)) };
}
