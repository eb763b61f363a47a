// Memory and time of a run before it is started: the real step is compiled, none is run for long.

import { post } from "../api.js";
import { h, put } from "../dom.js";
import { bytes, count, duration, percent } from "../format.js";
import { t } from "../i18n.js";
import { bar, button, levelOf, setBar } from "./basics.js";
import { jobPanel } from "./jobs.js";
import { errorCard, showRefusal } from "./problem.js";

/** The panel; `question()` yields what is asked, `act(action)` does what a card's button says. */
export function estimatePanel(question, act, signal) {
  const holder = h("div", { class: "stack" });
  const problem = h("div");
  async function run() {
    showRefusal(problem, null);
    ask.disabled = true;
    try {
      const { job } = await post("form/estimate", question());
      const panel = jobPanel(job.id ?? job, {
        done: (done) => result(done.result, act),
        act,
        signal,
      });
      put(holder, panel.element);
      await panel.finished;
    } catch (error) {
      showRefusal(problem, error);
    } finally {
      ask.disabled = false;
    }
  }
  const ask = button(t("estimate.ask"), run, { id: "estimate" });
  const element = h(
    "section",
    { class: "panel stack tight" },
    h("div", { class: "row apart" }, h("h2", {}, t("estimate.title")), ask),
    h("p", { class: "faint" }, t("estimate.hint")),
    problem,
    holder,
  );
  return { element, run };
}

function result(estimate, act) {
  if (estimate.card) return errorCard(estimate.card, act);
  const { parameters = {}, device_bytes: needed, device_limit_bytes: limit } = estimate;
  const share = limit ? needed / limit : null;
  const meter = bar(share ?? 0, t("estimate.memory"));
  if (share !== null) setBar(meter, share, levelOf(share));
  const facts = [
    [
      t("estimate.parameters"),
      t("estimate.parameters.value", {
        total: count((parameters.ternary ?? 0) + (parameters.float ?? 0) + (parameters.fast ?? 0)),
        ternary: count(parameters.ternary),
      }),
    ],
    [t("estimate.packed"), bytes(estimate.packed_bytes)],
    [
      t("estimate.memory"),
      limit ? `${bytes(needed)} / ${bytes(limit)} (${percent(share, 0)})` : bytes(needed),
    ],
    [t("estimate.step"), duration(estimate.step_s)],
    [t("estimate.speed"), t("unit.tokens_s", { n: count(estimate.tokens_per_s) })],
    [t("estimate.total"), duration(estimate.total_s)],
  ];
  const verdict =
    estimate.fits === false
      ? ["bad", "estimate.too_large"]
      : estimate.fits
        ? ["ok", "estimate.fits"]
        : null;
  return [
    verdict && h("span", { class: `badge ${verdict[0]}` }, t(verdict[1])),
    share !== null && meter,
    h(
      "dl",
      { class: "facts num column" },
      facts.map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", {}, value))),
    ),
  ];
}
