// Work in the background: what it does, how far it is, its end.

import { get, post, segment } from "../api.js";
import { h, put } from "../dom.js";
import { on } from "../events.js";
import { duration, number } from "../format.js";
import { t, translated } from "../i18n.js";
import { bar, button, setBar } from "./basics.js";
import { errorCard, showRefusal } from "./problem.js";

const LOOK_MS = 3000; // how often to ask where events don't come

/** Follows a job until it ends; resolves with its last answer, or null if the page is left. */
export function followJob(id, onchange, signal) {
  return new Promise((resolve) => {
    let over = false;
    const take = (job) => {
      if (over || job.id !== id) return;
      onchange(job);
      if (job.state === "running") return;
      over = true;
      clearInterval(timer);
      resolve(job);
    };
    const look = () => get(`jobs/${segment(id)}`, {}, { signal }).then(take, () => {});
    const timer = setInterval(look, LOOK_MS);
    on("job", (job) => job.id === id && look(), signal);
    signal.addEventListener("abort", () => (clearInterval(timer), resolve(null)));
    look();
  });
}

/**
 * A panel that shows a job.
 *
 * @param {(job) => Node} done draws the result of one that went well.
 * @param {(action) => void} act does what the buttons of its error card say.
 */
export function jobPanel(id, { done, act = () => {}, signal }) {
  const progress = bar(null, t("job.progress"));
  const words = h("p", { class: "small soft num", role: "status" }, t("job.starting"));
  const tail = h("pre", { class: "block small" });
  const problem = h("div");
  const stop = button(t("job.stop"), () =>
    post(`jobs/${segment(id)}/stop`, { force: false }).catch((error) =>
      showRefusal(problem, error),
    ),
  );
  const element = h(
    "div",
    { class: "stack", dataset: { job: id } },
    progress,
    h("div", { class: "row apart" }, words, stop),
    problem,
    h("details", {}, h("summary", {}, t("job.log")), tail),
  );
  const show = (job) => {
    const { activity, done: finished, total, eta_s: eta } = job.progress ?? {};
    setBar(progress, total ? finished / total : null);
    const far = total ? `${number(finished)} / ${number(total)}` : "";
    put(
      words,
      [activity, far, eta && t("job.left", { time: duration(eta) })].filter(Boolean).join(" · ") ||
        t("job.working"),
    );
    tail.textContent = (job.log_tail ?? []).join("\n");
  };
  const finished = followJob(id, show, signal).then((job) => {
    if (!job) return null;
    stop.remove();
    if (job.state === "done") {
      put(element, done(job));
      element.scrollIntoView({ block: "nearest" });
    } else if (job.card) put(element, errorCard(job.card, act));
    else {
      progress.remove();
      put(words, translated(`job.${job.state}`, job.state));
      element.querySelector("details").open = true;
    }
    return job;
  });
  return { element, finished };
}
