// Small parts that every page uses: badges, bars, icons, messages, dialogs, tabs.

import { h, put, setVar, svg, uniqueId } from "../dom.js";
import { t } from "../i18n.js";

const PATHS = {
  runs: "M3 17l5-6 4 4 8-10M3 21h18",
  new: "M12 5v14M5 12h14",
  data: "M4 6c0-1.7 3.6-3 8-3s8 1.3 8 3-3.6 3-8 3-8-1.3-8-3zm0 0v12c0 1.7 3.6 3 8 3s8-1.3 8-3V6M4 12c0 1.7 3.6 3 8 3s8-1.3 8-3",
  play: "M4 5h16v11H9l-5 4z",
  export: "M12 3v12m0-12l-4 4m4-4l4 4M4 15v5h16v-5",
  system: "M6 6h12v12H6zM9 2v4m6-4v4M9 18v4m6-4v4M2 9h4m-4 6h4m12-6h4m-4 6h4",
  sun: "M12 7a5 5 0 100 10 5 5 0 000-10zM12 1v2m0 18v2M4.2 4.2l1.4 1.4m12.8 12.8l1.4 1.4M1 12h2m18 0h2M4.2 19.8l1.4-1.4M18.4 5.6l1.4-1.4",
  moon: "M20 14.5A8.5 8.5 0 019.5 4 8.5 8.5 0 1020 14.5z",
  auto: "M12 3a9 9 0 100 18zM12 3a9 9 0 010 18",
  help: "M9 9a3 3 0 116 .5c0 2-3 2-3 4.5m0 3.5v.01M12 2a10 10 0 100 20 10 10 0 000-20z",
  folder: "M3 6h6l2 2h10v11H3z",
  file: "M6 3h8l4 4v14H6zM14 3v4h4",
  close: "M6 6l12 12M18 6L6 18",
};

/** A line icon by name; decoration only, so hidden from screen readers. */
export function icon(name) {
  return svg(
    "svg",
    {
      viewBox: "0 0 24 24",
      fill: "none",
      stroke: "currentColor",
      "stroke-width": "1.8",
      "stroke-linecap": "round",
      "stroke-linejoin": "round",
      "aria-hidden": "true",
    },
    svg("path", { d: PATHS[name] }),
  );
}

const LOOKS = { finished: "ok", failed: "bad", lost: "bad", stopped: "warn", stopping: "warn" };

/** What a run does, as a coloured word. */
export function stateBadge(run) {
  if (run.not_responding) return h("span", { class: "badge warn" }, t("state.not_responding"));
  return h("span", { class: `badge ${LOOKS[run.state] ?? "live"}` }, t(`state.${run.state}`));
}

/** A bar for a share between 0 and 1; null moves to and fro. */
export function bar(share, label) {
  const element = h(
    "div",
    {
      class: "bar",
      role: "progressbar",
      "aria-label": label,
      "aria-valuemin": 0,
      "aria-valuemax": 100,
    },
    h("i"),
  );
  setBar(element, share);
  return element;
}

export function setBar(element, share, level = "") {
  const known = typeof share === "number" && Number.isFinite(share);
  element.className = `bar ${known ? level : "unknown"}`;
  if (known) {
    const inside = Math.min(1, Math.max(0, share));
    setVar(element, "share", inside);
    element.setAttribute("aria-valuenow", Math.round(100 * inside));
  } else element.removeAttribute("aria-valuenow");
}

/** ok, high or full: the same levels as in the terminal. */
export const levelOf = (share) => (share > 0.95 ? "full" : share > 0.85 ? "high" : "ok");

/** A button. */
export function button(label, onclick, props = {}) {
  return h("button", { type: "button", onclick, ...props }, label);
}

/** A short message in the corner. */
export function toast(text) {
  const element = h("div", { class: "toast" }, text);
  document.getElementById("toasts").append(element);
  setTimeout(() => element.remove(), 6000);
}

/** Copies a text, and says so. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast(t("copied"));
  } catch {
    // Without https or permission: a field to copy from.
    const area = h("textarea", { rows: 8, readOnly: true, value: text, "aria-label": t("copy") });
    openDialog(t("copy"), area);
    area.select();
  }
}

/** Opens a dialog; `buttons` are put at its foot. Returns the dialog. */
export function openDialog(title, content, buttons = []) {
  const heading = uniqueId("dialog");
  const dialog = h("dialog", { "aria-labelledby": heading, onclose: () => dialog.remove() });
  const close = button(t("close"), () => dialog.close(), { class: "quiet" });
  put(
    dialog,
    h("div", { class: "stack" }, h("h2", { id: heading }, title), content),
    h("div", { class: "dialog-foot" }, close, buttons),
  );
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** Asks before something that can't be undone. */
export function confirmDialog(title, text, label) {
  return new Promise((resolve) => {
    let answer = false;
    const yes = button(label, () => ((answer = true), dialog.close()), { class: "primary" });
    const dialog = openDialog(title, h("p", {}, text), [yes]);
    dialog.addEventListener("close", () => resolve(answer));
  });
}

/** Asks for a name. */
export function askName(title, initial, label) {
  return new Promise((resolve) => {
    let answer = null;
    const input = h("input", { value: initial, "aria-label": title });
    const send = (event) => (
      event.preventDefault(),
      (answer = input.value.trim() || null),
      dialog.close()
    );
    const form = h(
      "form",
      { class: "stack", onsubmit: send },
      input,
      h("div", {}, h("button", { class: "primary" }, label)),
    );
    const dialog = openDialog(title, form);
    input.select();
    dialog.addEventListener("close", () => resolve(answer));
  });
}

/** Tabs: entries [{key, label, panel}]; arrow keys move between them. */
export function tabs(entries, selected, onselect) {
  const group = uniqueId("tabs");
  const buttons = entries.map(({ key, label }) =>
    h(
      "button",
      {
        type: "button",
        role: "tab",
        id: `${group}-${key}`,
        "aria-controls": `${group}-panel-${key}`,
        onclick: () => select(key),
      },
      label,
    ),
  );
  const panels = entries.map(({ key, panel }) =>
    h(
      "section",
      { role: "tabpanel", id: `${group}-panel-${key}`, "aria-labelledby": `${group}-${key}` },
      panel,
    ),
  );
  function select(key, tell = true) {
    entries.forEach((entry, index) => {
      const chosen = entry.key === key;
      buttons[index].setAttribute("aria-selected", String(chosen));
      buttons[index].tabIndex = chosen ? 0 : -1;
      panels[index].hidden = !chosen;
    });
    if (tell) onselect?.(key);
  }
  const onkeydown = (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    const place = buttons.indexOf(document.activeElement);
    const next = (place + move + entries.length) % entries.length;
    buttons[next].focus();
    select(entries[next].key);
  };
  const list = h("div", { class: "tabs", role: "tablist", onkeydown }, buttons);
  select(entries.some(({ key }) => key === selected) ? selected : entries[0].key, false);
  return h("div", {}, list, panels);
}

/** A choice of a few: options [[value, label]]. */
export function segments(options, value, onchange, label) {
  const buttons = options.map(([key, text]) =>
    button(text, () => set(key, true), { "aria-pressed": key === value }),
  );
  function set(key, tell = false) {
    buttons.forEach((element, index) =>
      element.setAttribute("aria-pressed", String(options[index][0] === key)),
    );
    if (tell) onchange(key);
  }
  const element = h("div", { class: "segments", role: "group", "aria-label": label }, buttons);
  return { element, set };
}

/** A labelled field: `control` gets the label, and below it stands `hint`. */
export function labelled(label, control, hint) {
  control.id ||= uniqueId("field");
  const note = hint && h("p", { class: "faint", id: `${control.id}-hint` }, hint);
  if (note) control.setAttribute("aria-describedby", note.id);
  return h(
    "div",
    { class: "stack tight labelled" },
    h("label", { for: control.id }, label),
    control,
    note,
  );
}

/** A select: options [[value, label]]. */
export function choice(options, value, onchange, props = {}) {
  const items = options.map(([key, label]) =>
    h("option", { value: key, selected: String(key) === String(value) }, label),
  );
  return h("select", { onchange: (event) => onchange?.(event.target.value), ...props }, items);
}
