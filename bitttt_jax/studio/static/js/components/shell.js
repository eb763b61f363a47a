// The rail with the pages, language, theme, and the keyboard shortcuts.

import { h, put } from "../dom.js";
import { on } from "../events.js";
import { LANGUAGES, currentLanguage, setLanguage, t } from "../i18n.js";
import { go, link } from "../router.js";
import { allRuns, isLive } from "../store.js";
import { nextTheme, theme } from "../theme.js";
import { button, icon, openDialog } from "./basics.js";

export const PAGES = ["runs", "new", "data", "play", "export", "system"];
const KEYS = { r: "runs", n: "new", d: "data", p: "play", e: "export", s: "system" };

/** Draws the rail; `redraw` draws the page anew after a change of language. */
export function drawRail(rail, redraw) {
  const items = PAGES.map((name) =>
    h(
      "li",
      {},
      h(
        "a",
        { href: link(name), dataset: { page: name } },
        icon(name),
        h("span", {}, t(`nav.${name}`)),
        name === "runs" && h("i", { class: "pulse", hidden: true, title: t("nav.live") }),
      ),
    ),
  );
  const language = Object.entries(LANGUAGES).map(([code, label]) =>
    button(label, () => setLanguage(code).then(redraw), {
      class: "quiet",
      lang: code,
      "aria-pressed": code === currentLanguage(),
    }),
  );
  put(
    rail,
    h(
      "a",
      { class: "brand", href: link("runs") },
      h("img", { src: "static/icon.svg", alt: "" }),
      h("span", {}, "bitttt ", h("small", {}, "studio")),
    ),
    h("nav", { "aria-label": t("nav.pages") }, h("ul", {}, items)),
    h(
      "div",
      { class: "rail-foot" },
      h("p", { class: "faint note label" }, t("nav.closing")),
      h("div", { class: "row language", role: "group", "aria-label": t("nav.language") }, language),
      h(
        "div",
        { class: "row" },
        themeButton(),
        button(icon("help"), showShortcuts, {
          class: "quiet icon",
          "aria-label": t("keys.title"),
          title: t("keys.title"),
        }),
      ),
    ),
  );
}

/** Marks the page that is shown. */
export function markPage(rail, name) {
  for (const anchor of rail.querySelectorAll("nav a")) {
    const mine = anchor.dataset.page === (name === "run" ? "runs" : name);
    if (mine) anchor.setAttribute("aria-current", "page");
    else anchor.removeAttribute("aria-current");
  }
}

/** A dot beside "Runs" while something trains. */
export function followRuns(rail) {
  const show = (runs) => {
    const dot = rail.querySelector(".pulse");
    if (dot) dot.hidden = !runs.some(isLive);
  };
  on("runs", (data) => show(data.runs));
  return async () => show(await allRuns());
}

/** Single keys go to pages, unless something is being typed. */
export function listenForKeys() {
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, textarea, select, [contenteditable]");
    if (
      typing ||
      event.ctrlKey ||
      event.metaKey ||
      event.altKey ||
      document.querySelector("dialog[open]")
    )
      return;
    if (event.key === "?") showShortcuts();
    else if (event.key === "/") focusSearch(event);
    else if (event.key === "t") turnTheme();
    else if (KEYS[event.key]) go(KEYS[event.key]);
  });
}

function focusSearch(event) {
  const search = document.querySelector("main input[type=search]");
  if (!search) return;
  event.preventDefault();
  search.focus();
}

function themeButton() {
  const name = theme();
  const symbol = { light: "sun", dark: "moon", auto: "auto" }[name];
  const label = t(`theme.${name}`);
  return button(icon(symbol), turnTheme, {
    class: "quiet icon theme",
    "aria-label": label,
    title: label,
  });
}

function turnTheme() {
  nextTheme();
  document.querySelector(".rail .theme")?.replaceWith(themeButton());
}

function showShortcuts() {
  const rows = [
    ...Object.entries(KEYS).map(([key, page]) => [key, t(`nav.${page}`)]),
    ["/", t("keys.search")],
    ["t", t("keys.theme")],
    ["?", t("keys.title")],
    ["← →", t("keys.tabs")],
    ["Ctrl Enter", t("keys.send")],
    ["Esc", t("keys.close")],
  ];
  const body = rows.map(([key, what]) =>
    h("tr", {}, h("td", {}, h("kbd", {}, key)), h("td", {}, what)),
  );
  openDialog(t("keys.title"), h("table", {}, h("tbody", {}, body)));
}

/** The page's title and name in the browser's tab. */
export function setTitle(text) {
  document.title = text ? `${text} · bitttt studio` : "bitttt studio";
}
