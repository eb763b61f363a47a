// Preparing: text is read, cleaned, divided and written as tokens once, for any number of runs.

import { post } from "../api.js";
import { h, put } from "../dom.js";
import { ago, count, number, percent } from "../format.js";
import { t } from "../i18n.js";
import { link } from "../router.js";
import { button, labelled } from "./basics.js";
import { jobPanel } from "./jobs.js";
import { showRefusal } from "./problem.js";
import { empty } from "./run_facts.js";

/** The last step; `refresh()` after a change of what is chosen. */
export function preparePanel(state, ondone, signal) {
  const name = h("input", {
    id: "data-name",
    value: "",
    placeholder: "my-text",
    spellcheck: "false",
    autocomplete: "off",
  });
  const held = h("input", {
    type: "range",
    min: 0,
    max: 0.3,
    step: 0.01,
    value: 0.05,
    id: "held-out",
  });
  const words = h("output", { class: "num small", for: "held-out" });
  const problem = h("div");
  const holder = h("div");
  const start = button(t("data.start"), begin, { class: "primary", id: "prepare" });
  const refresh = () => {
    start.disabled = !state.sources.length;
    words.textContent = percent(Number(held.value), 0);
    if (!name.value && state.sources.length) name.value = suggestName(state.sources[0].path);
  };
  async function begin() {
    showRefusal(problem, null);
    const data = {
      sources: state.sources,
      tokenizer: state.tokenizer,
      clean: state.clean,
      validation_fraction: Number(held.value),
    };
    if (state.template) data.chat_template = state.template;
    try {
      const { job } = await post("data/prepare", { name: name.value.trim(), data });
      const panel = jobPanel(job.id ?? job, {
        done: (done) => result(done.result, state.tokenizer.kind),
        signal,
      });
      put(holder, panel.element);
      start.disabled = true;
      await panel.finished;
      ondone();
    } catch (error) {
      showRefusal(problem, error);
    }
    refresh();
  }
  held.addEventListener("input", refresh);
  refresh();
  const element = h(
    "div",
    { class: "stack" },
    h(
      "div",
      { class: "columns even" },
      labelled(t("data.name"), name),
      h(
        "div",
        { class: "stack tight" },
        h("label", { for: "held-out" }, t("data.held_out"), " ", words),
        held,
        h("p", { class: "faint" }, t("data.held_out.why")),
      ),
    ),
    h("div", {}, start),
    problem,
    holder,
  );
  return { element, refresh };
}

function suggestName(path) {
  const last = path.split("/").filter(Boolean).at(-1) ?? "data";
  return last
    .replace(/\.[^.]*$/, "")
    .replace(/[^\p{L}\p{N}_-]+/gu, "-")
    .slice(0, 60);
}

function result(done, tokenizer) {
  if (!done) return empty(t("data.none"), t("data.none.why"));
  const skipped = Object.entries({ ...done.skipped, ...done.cleaned }).filter(([, n]) => n);
  return h(
    "div",
    { class: "card ok" },
    h("h3", {}, t("data.ready", { tokens: count(done.tokens), documents: number(done.documents) })),
    h(
      "p",
      { class: "small num" },
      t("data.ready.detail", {
        vocab: number(done.vocab_size),
        bytes: number(done.bytes_per_token, 3),
      }),
    ),
    skipped.length > 0 &&
      h(
        "p",
        { class: "small" },
        t("data.skipped"),
        " ",
        skipped.map(([why, n]) => `${why}: ${number(n)}`).join(", "),
      ),
    h(
      "div",
      {},
      h(
        "a",
        {
          class: "button primary",
          id: "train-on-it",
          href: link("new", [], { data: done.folder, tokenizer, vocab_size: done.vocab_size }),
        },
        t("data.train"),
      ),
    ),
  );
}

/** The prepared data that is there. */
export function preparedList(prepared) {
  if (!prepared.length) return empty(t("data.none"), t("data.none.why"));
  return h(
    "ul",
    { class: "prepared" },
    prepared.map((data) =>
      h(
        "li",
        {},
        h(
          "div",
          {},
          h("b", {}, data.name),
          h(
            "p",
            { class: "faint num" },
            [
              t("data.tokens", { n: count(data.tokens) }),
              t("data.documents", { n: number(data.documents) }),
              ago(data.created),
            ].join(" · "),
          ),
        ),
        h(
          "a",
          {
            class: "button",
            href: link("new", [], {
              data: data.path,
              tokenizer: data.tokenizer,
              vocab_size: data.vocab_size,
            }),
          },
          t("data.train"),
        ),
      ),
    ),
  );
}
