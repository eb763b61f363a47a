// Looking through the declared folders, and bringing files in.

import { get, segment, upload } from "../api.js";
import { h, put } from "../dom.js";
import { bytes, percent, when } from "../format.js";
import { t } from "../i18n.js";
import { bar, button, icon, setBar } from "./basics.js";
import { refusal, showRefusal } from "./problem.js";

/**
 * A browser of folders.
 *
 * @param {(entry) => void} onpick is called for a chosen file or folder.
 * @returns {{element, open}} open(path) shows a folder.
 */
export function fileBrowser(onpick) {
  const list = h("ul", { class: "files" });
  const path = h("div", { class: "row small crumbs" });
  const element = h("div", { class: "stack tight" }, path, list);
  async function open(folder) {
    try {
      show(await get("files", { path: folder }));
    } catch (error) {
      put(list, h("li", {}, refusal(error)));
    }
  }
  function show(answer) {
    const roots = (answer.roots ?? []).map((root) =>
      button(root.name ?? short(root.path ?? root), () => open(root.path ?? root), {
        class: "quiet",
        title: root.path ?? root,
      }),
    );
    const here =
      answer.path &&
      button(
        t("files.use_folder"),
        () => onpick({ path: answer.path, name: short(answer.path), kind: "folder" }),
        { class: "use" },
      );
    put(
      path,
      roots,
      h("span", { class: "mono soft" }, answer.path ? short(answer.path) : ""),
      here,
    );
    const up =
      answer.parent && row({ name: "..", kind: "folder", path: answer.parent }, open, null);
    const rows = answer.entries.map((entry) => row(entry, open, onpick));
    put(list, up, rows, !rows.length && h("li", { class: "faint empty" }, t("files.empty")));
  }
  return { element, open };
}

function row(entry, open, onpick) {
  const folder = entry.kind === "folder";
  const act = () => (folder ? open(entry.path) : onpick(entry));
  return h(
    "li",
    {},
    h(
      "button",
      { type: "button", class: "file", onclick: act },
      icon(folder ? "folder" : "file"),
      h("span", { class: "name" }, entry.name),
      h("span", { class: "faint num" }, folder ? "" : bytes(entry.bytes)),
      h("span", { class: "faint num date" }, entry.modified ? when(entry.modified) : ""),
    ),
    folder &&
      onpick &&
      button(t("files.use"), () => onpick(entry), {
        class: "quiet",
        "aria-label": t("files.use_name", { name: entry.name }),
      }),
  );
}

/** Where files are dropped or chosen; `onuploaded({path, bytes})` for each that arrived. */
export function dropZone(onuploaded, signal) {
  const progress = h("div", { class: "stack tight" });
  const input = h("input", {
    type: "file",
    multiple: true,
    class: "visually-hidden",
    onchange: () => take(input.files),
    "aria-label": t("upload.choose"),
  });
  const folderInput = h("input", {
    type: "file",
    webkitdirectory: true,
    class: "visually-hidden",
    onchange: () => takeFolder(folderInput.files),
    "aria-label": t("upload.folder"),
  });
  const zone = h(
    "div",
    { class: "drop" },
    icon("export"),
    h("p", {}, t("upload.drop")),
    h("p", { class: "faint" }, t("upload.kinds")),
    h(
      "div",
      { class: "row" },
      h("label", { class: "button" }, t("upload.choose"), input),
      h("label", { class: "button" }, t("upload.folder"), folderInput),
    ),
  );
  const over = (event) => (event.preventDefault(), zone.classList.add("over"));
  zone.addEventListener("dragover", over);
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    take(event.dataTransfer.files);
  });
  async function take(files) {
    // One after the other: a disk has one head.
    for (const file of files) {
      const answer = await send(file, `uploads/${segment(file.name)}`);
      if (answer) onuploaded(answer);
    }
    input.value = "";
  }
  async function takeFolder(files) {
    let path = "";
    for (const file of files) {
      const [folder, ...parts] = file.webkitRelativePath.split("/");
      if (parts.some((part) => part.startsWith("."))) continue;
      // A folder of the uploads holds files only.
      const name = segment(parts.join("__"));
      const answer = await send(file, `uploads/${name}?folder=${segment(folder)}`);
      if (answer) path = answer.path.slice(0, answer.path.lastIndexOf("/"));
    }
    if (path) onuploaded({ path });
    folderInput.value = "";
  }
  async function send(file, place) {
    const controller = new AbortController();
    const leave = () => controller.abort();
    signal.addEventListener("abort", leave);
    const meter = bar(0, file.name);
    const words = h("span", { class: "faint num" });
    const problem = h("div");
    const line = h(
      "div",
      { class: "stack tight upload" },
      h(
        "div",
        { class: "row apart" },
        h("span", { class: "small" }, file.name),
        words,
        button(icon("close"), leave, { class: "quiet icon", "aria-label": t("upload.cancel") }),
      ),
      meter,
      problem,
    );
    progress.append(line);
    const onprogress = (sent, total) => {
      setBar(meter, total ? sent / total : null);
      put(words, `${bytes(sent)} / ${bytes(total)} · ${percent(total ? sent / total : 1, 0)}`);
    };
    try {
      const answer = await upload(place, file, { onprogress, signal: controller.signal });
      line.remove();
      return answer;
    } catch (error) {
      if (error.name === "AbortError") line.remove();
      else showRefusal(problem, error);
      return null;
    } finally {
      signal.removeEventListener("abort", leave);
    }
  }
  return h("div", { class: "stack" }, zone, progress);
}

const short = (path) => path.split("/").filter(Boolean).slice(-2).join("/") || path;
