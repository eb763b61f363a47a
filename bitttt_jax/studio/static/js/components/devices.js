// The memory of all devices at once: a cell per device, a row per host, readable up to hundreds.

import { h, put } from "../dom.js";
import { bytes, percent } from "../format.js";
import { t } from "../i18n.js";
import { levelOf } from "./basics.js";

const LARGE = 16; // up to this many devices each cell has room for its number

/** Draws devices [{host, index, name, used, limit}] into an element. */
export function drawDevices(holder, devices) {
  if (!devices.length) return void put(holder);
  const hosts = Map.groupBy(devices, (device) => device.host ?? "");
  const worst = devices.reduce((a, b) => (share(b) > share(a) ? b : a));
  const rows = [...hosts].map(([host, members]) =>
    h(
      "div",
      { class: "device-row" },
      hosts.size > 1 && h("span", { class: "device-host mono" }, host),
      h(
        "div",
        { class: "device-cells" },
        members.map((device) => cell(device, devices.length <= LARGE)),
      ),
    ),
  );
  const summary = t("devices.summary", {
    n: devices.length,
    worst: name(worst),
    share: percent(share(worst), 0),
  });
  put(
    holder,
    h(
      "div",
      {
        class: `devices ${devices.length > LARGE ? "dense" : ""}`,
        role: "img",
        "aria-label": summary,
      },
      rows,
    ),
    h("p", { class: "faint num" }, summary),
  );
}

/** The devices of hosts [{name, used: [bytes per device], limit}]. */
export function devicesOf(hosts) {
  return hosts.flatMap(({ name: host, used, limit }) =>
    used.map((bytesUsed, index) => ({ host, index, used: bytesUsed, limit })),
  );
}

function cell(device, large) {
  const part = share(device);
  const known = Number.isFinite(part);
  const title = known
    ? `${name(device)}: ${bytes(device.used)} / ${bytes(device.limit)} (${percent(part, 0)})`
    : `${name(device)}: ${t("devices.unknown")}`;
  return h(
    "div",
    {
      class: `device ${known ? levelOf(part) : "unknown"}`,
      title,
      vars: { share: known ? Math.min(1, part) : 0 },
    },
    large && h("b", {}, name(device)),
    large &&
      h(
        "span",
        { class: "num" },
        known ? `${bytes(device.used)} · ${percent(part, 0)}` : t("devices.unknown"),
      ),
  );
}

const share = (device) => (device.limit ? device.used / device.limit : NaN);
const name = (device) => `${device.host ? `${device.host}:` : ""}${device.name ?? device.index}`;
