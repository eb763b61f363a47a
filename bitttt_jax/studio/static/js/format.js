// Numbers, sizes and times as people read them, in their language.

import { currentLanguage, t } from "./i18n.js";

const DASH = "–";
const BYTES = ["B", "KiB", "MiB", "GiB", "TiB"];
const COUNTS = ["", "K", "M", "B", "T"];

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** 12345 → 12,345; fractions with as many digits as say something. */
export function number(value, digits = 4) {
  if (!isNumber(value)) return DASH;
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e9)) return value.toExponential(2).replace("e+", "e");
  const options = Number.isInteger(value) ? {} : { maximumSignificantDigits: Math.max(digits, 1) };
  return value.toLocaleString(currentLanguage(), options);
}

/** A loss: always three places, so that it doesn't jump about. */
export function loss(value) {
  return isNumber(value) ? value.toFixed(3) : DASH;
}

/** 1_500_000 → 1.5M. */
export function count(value) {
  return scaled(value, COUNTS, 1000, "");
}

/** 1536 → 1.5 KiB. */
export function bytes(value) {
  return scaled(value, BYTES, 1024, " ");
}

/** 0.123 → 12.3 %. */
export function percent(value, places = 1) {
  return isNumber(value) ? `${(100 * value).toFixed(places)} %` : DASH;
}

/** Seconds → 3 min 5 s. */
export function duration(seconds) {
  if (!isNumber(seconds) || seconds < 0) return DASH;
  if (seconds < 1) return t("time.ms", { n: Math.round(1000 * seconds) });
  if (seconds < 60)
    return t("time.s", { n: seconds < 10 ? seconds.toFixed(1) : Math.round(seconds) });
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return t("time.min_s", { m: minutes, s: Math.round(seconds % 60) });
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return t("time.h_min", { h: hours, m: minutes % 60 });
  return t("time.d_h", { d: Math.floor(hours / 24), h: hours % 24 });
}

/** Seconds since 1970 → "3 minutes ago". */
export function ago(time) {
  if (!isNumber(time) || time <= 0) return DASH;
  const seconds = Math.max(0, Date.now() / 1000 - time);
  const relative = new Intl.RelativeTimeFormat(currentLanguage(), { numeric: "auto" });
  if (seconds < 45) return relative.format(-Math.round(seconds), "second");
  if (seconds < 2700) return relative.format(-Math.round(seconds / 60), "minute");
  if (seconds < 79200) return relative.format(-Math.round(seconds / 3600), "hour");
  return relative.format(-Math.round(seconds / 86400), "day");
}

/** Seconds since 1970 → the local date and time. */
export function when(time) {
  if (!isNumber(time) || time <= 0) return DASH;
  const options = { dateStyle: "medium", timeStyle: "medium" };
  return new Date(1000 * time).toLocaleString(currentLanguage(), options);
}

/** Seconds since 1970 → the local time of day. */
export function clock(time) {
  return isNumber(time) ? new Date(1000 * time).toLocaleTimeString(currentLanguage()) : DASH;
}

function scaled(value, units, base, gap) {
  if (!isNumber(value)) return DASH;
  let rest = value;
  let unit = 0;
  while (Math.abs(rest) >= base && unit < units.length - 1) {
    rest /= base;
    unit += 1;
  }
  const text = unit === 0 ? String(Math.round(rest)) : rest.toPrecision(rest >= 100 ? 4 : 3);
  return `${text}${units[unit] ? gap + units[unit] : ""}`;
}
