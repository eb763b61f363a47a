// Keeping what a stream has learned: saved states, loaded again, downloaded, brought from elsewhere.

import { get, post, segment, upload } from "../api.js";
import { h, put } from "../dom.js";
import { ago, bytes, number } from "../format.js";
import { t } from "../i18n.js";
import { askName, button, openDialog, toast } from "./basics.js";
import { streamPath } from "./player.js";
import { refusal, showRefusal } from "./problem.js";

/** The buttons for states; `onloaded(stream)` once one has been loaded. */
export function stateMenu(own, onloaded) {
  const { pane, problem } = own;
  async function save() {
    if (!pane.stream) return;
    const name = await askName(t("states.save"), suggest(pane), t("states.save"));
    if (!name) return;
    try {
      await post(`${streamPath(pane)}/save`, { name });
      toast(t("states.saved", { name }));
    } catch (error) {
      showRefusal(problem, error);
    }
  }
  async function open() {
    const holder = h("div", { class: "stack" });
    const wrong = h("div");
    const file = h("input", {
      type: "file",
      class: "visually-hidden",
      "aria-label": t("states.upload"),
    });
    const bring = h("label", { class: "button" }, t("states.upload"), file);
    const dialog = openDialog(
      t("states.load"),
      h("div", { class: "stack" }, h("p", { class: "soft small" }, t("states.why")), wrong, holder),
      [bring],
    );
    const load = async (name) => {
      showRefusal(wrong, null);
      try {
        await post(`${streamPath(pane)}/load`, { name });
        onloaded(await get(streamPath(pane)));
        dialog.close();
        toast(t("states.loaded", { name }));
      } catch (error) {
        showRefusal(wrong, error);
      }
    };
    const list = async () => put(holder, statesTable((await get("states")).states, load));
    file.addEventListener("change", async () => {
      try {
        await upload(`states/${segment(file.files[0].name)}`, file.files[0]);
        await list();
      } catch (error) {
        showRefusal(wrong, error);
      }
    });
    await list().catch((error) => put(holder, refusal(error)));
  }
  const place = pane.place;
  return {
    element: h(
      "div",
      { class: "row" },
      button(t("states.save_short"), save, { id: `save-state-${place}` }),
      button(t("states.load_short"), open, { id: `load-state-${place}` }),
    ),
  };
}

function statesTable(states, load) {
  if (!states.length) return h("p", { class: "soft" }, t("states.none"));
  return h(
    "ul",
    { class: "prepared" },
    states.map((state) =>
      h(
        "li",
        {},
        h(
          "div",
          {},
          h("b", {}, state.name),
          h(
            "p",
            { class: "faint num" },
            [
              state.model,
              t("data.tokens", { n: number(state.tokens) }),
              bytes(state.bytes),
              ago(state.time),
            ].join(" · "),
          ),
        ),
        h(
          "div",
          { class: "row" },
          button(t("states.load_this"), () => load(state.name), { dataset: { state: state.name } }),
          h(
            "a",
            { class: "button quiet", href: `api/states/${segment(state.name)}/file`, download: "" },
            t("export.download"),
          ),
        ),
      ),
    ),
  );
}

function suggest({ player }) {
  const stamp = new Date().toISOString().slice(5, 16).replace(/[-:T]/g, "");
  return `${(player.name ?? player.model).split("/").at(-1)}-${stamp}`;
}
