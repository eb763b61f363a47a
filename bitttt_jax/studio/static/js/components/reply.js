// A reply as it comes: pieces of text, the inner losses of what is read, and what it has cost.

import { stream } from "../api.js";
import { duration, number } from "../format.js";
import { t } from "../i18n.js";
import { h, put } from "../dom.js";
import { streamPath } from "./player.js";
import { refusal } from "./problem.js";
import { fact } from "./run_facts.js";

const WARMING_MS = 2000;

/** Writes to a stream, or lets it read a text, and shows what comes. */
export async function runReply(own, path, text) {
  const { pane, settings, problem, transcript, inner, status, signal } = own;
  put(problem);
  const reading = path === "read";
  if (text) transcript.add(reading ? "read" : "user", text);
  const body = reading ? { text } : { text, ...settings.values() };
  const reply = reading ? null : transcript.add("assistant", "");
  reply?.wait(true);
  const before = status.textContent;
  const started = Date.now();
  let last = started;
  // The first reply of a kind is compiled first, which says nothing by itself.
  const timer = setInterval(
    () =>
      Date.now() - last > WARMING_MS &&
      put(status, t("play.warming", { n: Math.round((Date.now() - started) / 1000) })),
    1000,
  );
  try {
    for await (const [event, data] of stream(`${streamPath(pane)}/${path}`, body, { signal })) {
      last = Date.now();
      if (event === "piece") reply?.append(data.text);
      else if (event === "inner") inner.add(data);
      else if (event === "reading")
        put(status, t("play.reading", { done: number(data.done), total: number(data.total) }));
      else if (event === "done") showStats(own, data);
      else if (event === "model")
        put(
          problem,
          h(
            "p",
            { class: "note-box", role: "status" },
            t("play.new_weights", { step: number(data.step) }),
          ),
        );
      else if (event === "error") put(problem, refusal({ status: 500, ...data }));
    }
  } catch (error) {
    if (error.name !== "AbortError") put(problem, refusal(error));
  } finally {
    clearInterval(timer);
    reply?.wait(false);
    put(status, before);
  }
}

function showStats(own, done) {
  put(
    own.stats,
    fact(t("play.tokens"), number(done.tokens)),
    done.tokens_per_s &&
      fact(t("play.speed"), t("unit.tokens_s", { n: number(done.tokens_per_s, 3) })),
    done.first_s && fact(t("play.first"), duration(done.first_s)),
    fact(t("play.position"), number(done.position)),
    done.forgotten > 0 && fact(t("play.forgotten"), number(done.forgotten)),
  );
}
