// The head of a run's page: name, state, progress, and what can be done with it.

import { post, segment } from "../api.js";
import { h, put } from "../dom.js";
import { ago, count, duration, loss, number } from "../format.js";
import { t } from "../i18n.js";
import { openTensorBoard } from "../pages/runs.js";
import { go, link } from "../router.js";
import { isLive } from "../store.js";
import { bar, button, confirmDialog, setBar, stateBadge, toast } from "./basics.js";
import { showRefusal } from "./problem.js";

const LINGERING_MS = 10_000; // between a run's end and that of its process
const FORCE_AFTER_MS = 30_000; // a stop that takes longer than this may need force

/** The head; `update(run)` with every news of the run. */
export function runHeader(id, signal) {
  const view = {
    badge: h("span", { role: "status" }),
    phase: h("span", { class: "soft small" }),
    meter: bar(0, t("run.progress")),
    far: h("span", { class: "num" }),
    eta: h("span", { class: "num soft" }),
    facts: h("dl", { class: "facts num" }),
    problem: h("div"),
    actions: h("div", { class: "row" }),
    closing: h("p", { class: "faint" }, t("run.closing")),
  };
  const state = { run: null, shown: "", stopping: false, forced: false, endedAt: null };
  const call = async (path, body, said) => {
    showRefusal(view.problem, null);
    try {
      await post(`runs/${segment(id)}/${path}`, body);
      if (said) toast(said);
      return true;
    } catch (error) {
      showRefusal(view.problem, error);
      return false;
    }
  };
  const commands = {
    stop: async () => {
      if (await call("stop", { force: false }, t("run.stop_said"))) {
        state.stopping = true;
        draw();
        const timer = setTimeout(() => ((state.forced = true), draw()), FORCE_AFTER_MS);
        signal.addEventListener("abort", () => clearTimeout(timer));
      }
    },
    force: async () => {
      if (await confirmDialog(t("run.force"), t("run.force_ask"), t("run.force")))
        await call("stop", { force: true }, t("run.force_said"));
    },
    resume: () => call("resume", {}, t("run.resume_said")),
    remove: async () => {
      if (
        await confirmDialog(t("run.delete"), t("run.delete_ask", { name: id }), t("run.delete"))
      ) {
        if (await call("delete", {}, t("run.delete_said"))) go("runs");
      }
    },
    board: () => openTensorBoard([id], view.problem),
  };
  const draw = () => state.run && show(id, state, view, commands);
  const update = (run) => {
    state.run = { ...state.run, ...run };
    const isLingering = state.run.alive && !isLive(state.run);
    state.endedAt = isLingering ? (state.endedAt ?? Date.now()) : null;
    if (isLingering) setTimeout(draw, LINGERING_MS);
    if (!run.alive || !isLive(run)) state.stopping = state.forced = false;
    draw();
  };
  const element = h(
    "header",
    { class: "run-head" },
    h(
      "div",
      { class: "row apart" },
      h("div", { class: "row" }, h("h1", {}, id), view.badge),
      view.actions,
    ),
    h(
      "div",
      { class: "run-meter" },
      view.meter,
      h(
        "div",
        { class: "row apart small" },
        h("span", { class: "row" }, view.far, view.phase),
        view.eta,
      ),
    ),
    view.facts,
    view.closing,
    view.problem,
  );
  return { element, update, resume: commands.resume, force: commands.force };
}

function show(id, state, view, commands) {
  const { run } = state;
  const live = isLive(run);
  const lingers = state.endedAt !== null && Date.now() - state.endedAt >= LINGERING_MS;
  put(view.badge, stateBadge(run), lingers && h("span", { class: "faint" }, t("run.lingering")));
  setBar(view.meter, run.steps ? run.step / run.steps : live ? null : 0);
  put(view.far, t("run.step_of", { step: number(run.step), steps: number(run.steps) }));
  put(view.phase, live ? run.phase : "");
  put(
    view.eta,
    live && run.eta_s !== null && run.eta_s !== undefined
      ? t("job.left", { time: duration(run.eta_s) })
      : run.updated
        ? ago(run.updated)
        : "",
  );
  view.closing.hidden = !live;
  drawFacts(view.facts, run);
  const shape = [
    live,
    lingers,
    run.state,
    run.can_resume,
    run.can_stop,
    state.stopping,
    state.forced,
  ].join();
  if (shape === state.shown) return; // or a button would vanish under a click
  state.shown = shape;
  put(view.actions, actionButtons(id, state, commands, { live, lingers }));
}

function actionButtons(id, { run, stopping, forced }, commands, { live, lingers }) {
  const buttons = [];
  if (live) {
    const isStopping = stopping || run.state === "stopping";
    buttons.push(
      button(isStopping ? t("run.stopping") : t("run.stop"), commands.stop, {
        class: "primary",
        id: "stop-run",
        disabled: isStopping && !forced,
      }),
    );
    if (isStopping || run.not_responding)
      buttons.push(button(t("run.force"), commands.force, { class: "danger", id: "force-run" }));
  } else if (lingers) {
    buttons.push(button(t("run.force"), commands.force, { class: "danger", id: "force-run" }));
  } else if (run.can_resume && run.state !== "finished") {
    buttons.push(button(t("run.resume"), commands.resume, { class: "primary", id: "resume-run" }));
  }
  buttons.push(
    h(
      "a",
      { class: "button", id: "play-run", href: link("play", [], { model: id }) },
      t("run.play"),
    ),
    h(
      "a",
      { class: "button", id: "export-run", href: link("export", [], { model: id }) },
      t("nav.export"),
    ),
    h(
      "a",
      { class: "button", id: "clone-run", href: link("new", [], { clone: id }) },
      t("run.clone"),
    ),
    button(t("run.tensorboard"), commands.board, { class: "quiet" }),
  );
  if (!live && !lingers)
    buttons.push(button(t("run.delete"), commands.remove, { class: "quiet danger" }));
  return buttons;
}

function drawFacts(holder, run) {
  const facts = [
    [t("run.train_loss"), loss(run.train_loss)],
    [t("run.eval_loss"), loss(run.eval_loss)],
    [t("run.speed"), run.tokens_per_s ? t("unit.tokens_s", { n: count(run.tokens_per_s) }) : null],
    [t("run.preset"), run.preset],
    [t("run.mixers"), run.mixers?.map((mixer) => mixer.replace("_", "-")).join(" + ")],
    [
      t("run.weights"),
      run.ternary === undefined
        ? null
        : t(run.ternary ? "run.weights.ternary" : "run.weights.float"),
    ],
  ];
  put(
    holder,
    facts
      .filter(([, value]) => value)
      .map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", {}, value))),
  );
}
