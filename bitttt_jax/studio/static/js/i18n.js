// Words: i18n/LANGUAGE.json has every string of the pages, `fields` those of the configuration.

export const LANGUAGES = { en: "English", ja: "日本語" };

let language = "en";
let strings = {};
let fields = {};

/** Loads a language (or the reader's own, as far as there is one). */
export async function loadLanguage(wanted = stored()) {
  language = wanted in LANGUAGES ? wanted : "en";
  [strings, fields] = await Promise.all([
    load(`../i18n/${language}.json`),
    load(`../i18n/fields.${language}.json`),
  ]);
  document.documentElement.lang = language;
}

/** The language in use. */
export function currentLanguage() {
  return language;
}

/** Chooses a language for good; the page has to be drawn anew afterwards. */
export async function setLanguage(wanted) {
  try {
    localStorage.setItem("bitttt.language", wanted);
  } catch {
    // Without storage the choice holds until the page is closed.
  }
  await loadLanguage(wanted);
}

/** The string of a key; {name} stands for a value. */
export function t(key, values = {}) {
  const text = strings[key];
  if (text === undefined) {
    console.error(`no words for ${key}`);
    return key;
  }
  return text.replace(/\{(\w+)\}/g, (whole, name) =>
    name in values ? String(values[name]) : whole,
  );
}

/** The string of a key, or what the server said where the pages have no words of their own. */
export function translated(key, fallback) {
  return key in strings ? strings[key] : fallback;
}

/** Title and help of a configuration field in the reader's language. */
export function fieldWords(field) {
  const [title, help] = fields[field.key] ?? [];
  return { title: title ?? field.title ?? field.key, help: help ?? field.help };
}

function stored() {
  try {
    return localStorage.getItem("bitttt.language") ?? navigator.language.slice(0, 2);
  } catch {
    return navigator.language.slice(0, 2);
  }
}

async function load(path) {
  const answer = await fetch(new URL(path, import.meta.url));
  return answer.json();
}
