// One model in the playground: choosing and loading it, its conversation, and what it learns.

import { get, post, remove, segment } from "../api.js";
import { h, put } from "../dom.js";
import { number } from "../format.js";
import { t } from "../i18n.js";
import { choice, labelled, segments } from "./basics.js";
import { innerView } from "./inner.js";
import { fact } from "./run_facts.js";
import { loadPlayer, streamPath } from "./player.js";
import { errorCard, refusal, showRefusal } from "./problem.js";
import { stateMenu } from "./states.js";
import { transcript } from "./transcript.js";
import { runReply } from "./reply.js";

/** A pane; `write(text)`, `read(text)` and `stop()` come from the common place to write in. */
export function playPane({ models, settings, wanted, place, onchoice }, outer) {
  const controller = new AbortController();
  outer.addEventListener("abort", () => controller.abort());
  const { signal } = controller;
  const pane = {
    player: null,
    stream: null,
    mode: "completion",
    learn: true,
    loading: null,
    place,
  };
  const view = paneView(models, wanted, place, signal);
  const own = { ...view, pane, settings, signal };
  view.model.addEventListener("change", () => (drawSteps(view, models, null), load()));
  view.step.addEventListener("change", load);
  view.device.addEventListener("change", load);
  view.mode.onchange = (mode) => ((pane.mode = mode), begin(own));
  view.learn.addEventListener("change", () => setLearn(own));
  view.reset.addEventListener("click", () => reset(own));
  const states = stateMenu(own, (described) => restore(own, described));
  view.states.append(states.element);
  function load() {
    onchoice(view.model.value, view.step.value);
    pane.loading = loadModel(own);
    return pane.loading;
  }
  drawSteps(view, models, wanted.step);
  load();
  const ready = async () => {
    await pane.loading;
    return pane.stream !== null;
  };
  const run = async (path, text) => (await ready()) && runReply(own, path, text);
  return {
    element: view.element,
    write: (text) => run("write", text),
    read: (text) => run("read", text),
    stop: () =>
      pane.stream &&
      post(`${streamPath(pane)}/stop`).catch((error) => showRefusal(view.problem, error)),
    close: () => controller.abort(),
  };
}

function paneView(models, wanted, place, signal) {
  const first =
    models.find(({ id }) => id === wanted.model) ?? models[Math.min(place, models.length - 1)];
  const view = {
    model: choice(
      models.map(({ id, name }) => [id, name]),
      first.id,
      null,
      { id: `play-model-${place}` },
    ),
    step: h("select", { id: `play-step-${place}` }),
    device: choice(
      [
        ["cpu", "CPU"],
        ["gpu", "GPU"],
        ["tpu", "TPU"],
      ],
      "cpu",
      null,
      { id: `play-device-${place}` },
    ),
    status: h("p", { class: "small soft", role: "status", id: `play-status-${place}` }),
    problem: h("div"),
    learn: h("input", { type: "checkbox", checked: true, id: `learn-${place}` }),
    reset: h("button", { type: "button", id: `reset-${place}` }, t("play.reset")),
    states: h("div", { class: "row" }),
    stats: h("dl", { class: "facts num", "aria-live": "polite" }),
    transcript: transcript(),
    inner: innerView(signal),
    mode: { onchange: () => {} },
    learnRow: null,
  };
  view.modes = segments(
    [
      ["completion", t("play.completion")],
      ["chat", t("play.chat")],
    ],
    "completion",
    (mode) => view.mode.onchange(mode),
    t("play.mode"),
  );
  view.learnRow = h(
    "div",
    { class: "learn-row" },
    h("label", { class: "check switch" }, view.learn, h("b", {}, t("play.learn"))),
    h("span", { class: "faint" }, t("play.learn_why")),
  );
  view.modeNote = h("p", { class: "faint" });
  view.element = h(
    "section",
    {
      class: "pane stack",
      "aria-label": t("play.pane", { n: place + 1 }),
      dataset: { pane: place },
    },
    h(
      "div",
      { class: "panel stack tight" },
      h(
        "div",
        { class: "pane-choice" },
        labelled(t("play.model"), view.model),
        labelled(t("play.step"), view.step),
        labelled(t("play.device"), view.device),
      ),
      view.status,
      view.problem,
      h(
        "div",
        { class: "row apart" },
        view.modes.element,
        h("div", { class: "row" }, view.reset, view.states),
      ),
      view.modeNote,
      view.learnRow,
    ),
    view.inner.element,
    h("div", { class: "panel flush conversation-panel" }, view.transcript.element, view.stats),
  );
  return view;
}

function drawSteps(view, models, wanted) {
  const { steps = [] } = models.find(({ id }) => id === view.model.value) ?? {};
  const options = [...steps]
    .reverse()
    .map((step) =>
      h(
        "option",
        { value: step, selected: String(step) === String(wanted) },
        t("play.step_n", { step: number(step) }),
      ),
    );
  put(view.step, h("option", { value: "" }, t("play.newest")), options);
  view.step.disabled = !steps.length;
}

async function loadModel(own) {
  const { pane, model, step, device, status, problem, signal } = own;
  Object.assign(pane, { player: null, stream: null });
  showRefusal(problem, null);
  own.inner.clear();
  const asked = {
    model: model.value,
    step: step.value ? Number(step.value) : null,
    device: device.value,
  };
  try {
    const player = await loadPlayer(asked, (words) => put(status, words), signal);
    if (model.value !== asked.model || signal.aborted) return;
    if (player.card)
      return void (
        put(status),
        put(
          problem,
          errorCard(player.card, () => {}),
        )
      );
    pane.player = player;
    describe(own, player.description ?? {});
    await resume(own);
  } catch (error) {
    if (error.name !== "AbortError") (put(status), put(problem, refusal(error)));
  }
}

function describe(own, description) {
  const { pane, status, learn, learnRow, modeNote } = own;
  const newer = pane.player.newer_step;
  const step = pane.player.step;
  put(
    status,
    [
      description.name,
      step !== null && step !== undefined && t("play.step_n", { step: number(step) }),
      newer && t("play.newer", { step: number(newer) }),
    ]
      .filter(Boolean)
      .join(" · "),
  );
  learn.disabled = !description.uses_ttt;
  learnRow.hidden = !description.uses_ttt;
  own.inner.element.hidden = !description.uses_ttt;
  pane.mode = description.has_chat_template ? "chat" : "completion";
  own.modes.set(pane.mode);
  put(modeNote, description.has_chat_template ? "" : t("play.base_model"));
}

// A reload of the page finds its conversation again, as long as the model is loaded.
async function resume(own) {
  const { pane } = own;
  const key = `bitttt.stream.${pane.place}.${pane.player.id}`;
  const known = sessionStorage.getItem(key);
  if (known) {
    pane.stream = known;
    try {
      return restore(own, await get(streamPath(pane)));
    } catch {
      pane.stream = null; // it was closed meanwhile
    }
  }
  return begin(own);
}

async function begin(own) {
  const { pane, problem } = own;
  if (!pane.player) return;
  showRefusal(problem, null);
  try {
    if (pane.stream) remove(streamPath(pane)).catch(() => {});
    const { id } = await post(`play/${segment(pane.player.id)}/streams`, {
      mode: pane.mode,
      system: "",
      learn: pane.learn,
    });
    pane.stream = id;
    sessionStorage.setItem(`bitttt.stream.${pane.place}.${pane.player.id}`, id);
    own.transcript.clear(pane.mode);
    own.inner.clear();
    put(own.stats);
  } catch (error) {
    pane.stream = null;
    showRefusal(problem, error);
  }
}

/** Shows a stream as it is described, after a reload or when a state has been loaded. */
function restore(own, { mode, learn, turns, position }) {
  own.pane.mode = mode;
  own.pane.learn = learn;
  own.modes.set(mode);
  own.learn.checked = learn;
  own.transcript.clear(mode);
  for (const { role, content } of turns ?? []) own.transcript.add(role, content);
  own.inner.clear();
  put(own.stats, fact(t("play.position"), number(position)));
}

async function setLearn(own) {
  const { pane, learn, problem } = own;
  pane.learn = learn.checked;
  if (!pane.stream) return;
  await post(`${streamPath(pane)}/learn`, { on: pane.learn }).catch((error) =>
    showRefusal(problem, error),
  );
}

async function reset(own) {
  const { pane, problem } = own;
  if (!pane.stream) return;
  try {
    await post(`${streamPath(pane)}/reset`);
    own.transcript.clear(pane.mode);
    own.inner.clear();
    put(own.stats);
  } catch (error) {
    showRefusal(problem, error);
  }
}
