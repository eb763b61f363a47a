// Light, dark, or as the system has it.

const THEMES = ["auto", "light", "dark"];
const dark = matchMedia("(prefers-color-scheme: dark)");
const listeners = new Set();

/** auto, light or dark, as chosen. */
export function theme() {
  return document.documentElement.dataset.theme ?? "auto";
}

/** Goes to the next choice; returns it. */
export function nextTheme() {
  const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length];
  document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem("bitttt.theme", next);
  } catch {
    // Without storage the choice holds until the page is closed.
  }
  tell();
  return next;
}

/** Calls back when colours change: canvases don't follow style sheets by themselves. */
export function onTheme(callback, signal) {
  listeners.add(callback);
  signal.addEventListener("abort", () => listeners.delete(callback));
}

/** A colour of the style sheets, as a canvas understands it. */
export function colour(name) {
  const probe = document.createElement("i");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

function tell() {
  for (const callback of listeners) callback();
}

dark.addEventListener("change", tell);
