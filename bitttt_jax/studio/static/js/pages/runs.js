// All runs: what they do now, how far they are, and for newcomers the way to the first one.

import { get, post, segment } from "../api.js";
import { bar, button, setBar, stateBadge, toast } from "../components/basics.js";
import { refusal, showRefusal } from "../components/problem.js";
import { setTitle } from "../components/shell.js";
import { sparkline } from "../components/spark.js";
import { h, put } from "../dom.js";
import { on } from "../events.js";
import { ago, bytes, duration, loss, number } from "../format.js";
import { t } from "../i18n.js";
import { go, link } from "../router.js";
import { allRuns, info, isLive } from "../store.js";

const FIRST_PRESET = "quickstart";
const SPARK_POINTS = 60;

export async function drawRuns(main, _place, signal) {
  setTitle(t("nav.runs"));
  const chosen = new Set();
  const compare = button(t("runs.compare"), () => goCompare(chosen), { disabled: true });
  const board = button(t("run.tensorboard"), () => openTensorBoard([...chosen], problem));
  const search = h("input", {
    type: "search",
    placeholder: t("runs.search"),
    "aria-label": t("runs.search"),
    oninput: () => draw(),
  });
  const list = h("ul", { class: "runs" });
  const problem = h("div");
  const tools = h("div", { class: "row tools" }, search, compare, board);
  const head = h(
    "header",
    { class: "page-head" },
    h("div", {}, h("h1", {}, t("nav.runs")), h("p", {}, t("runs.lead"))),
    h("a", { class: "button primary", href: link("new") }, t("nav.new")),
  );
  main.append(head, problem, tools, list);
  let runs = [];
  const rows = new Map();
  const onchoose = (id, isChosen) => {
    if (isChosen) chosen.add(id);
    else chosen.delete(id);
    compare.disabled = chosen.size < 2;
  };
  function draw() {
    const wanted = search.value.toLowerCase();
    const shown = runs.filter(
      (run) => run.name.toLowerCase().includes(wanted) || run.id.toLowerCase().includes(wanted),
    );
    tools.hidden = !runs.length;
    for (const id of rows.keys()) if (!runs.some((run) => run.id === id)) rows.delete(id);
    for (const run of shown) {
      if (!rows.has(run.id)) rows.set(run.id, runRow(run, onchoose, signal));
      rows.get(run.id).update(run);
    }
    if (!runs.length) put(list, h("li", {}, welcome(problem)));
    else if (!shown.length) put(list, h("li", { class: "faint" }, t("runs.none_found")));
    else
      arrange(
        list,
        shown.map((run) => rows.get(run.id).element),
      );
  }
  on("runs", (data) => ((runs = data.runs), draw()), signal);
  try {
    runs = await allRuns();
    draw();
  } catch (error) {
    put(list, h("li", {}, refusal(error)));
  }
}

// Moves only what isn't in its place, so that focus and selection stay.
function arrange(list, elements) {
  elements.forEach((element, index) => {
    if (list.children[index] !== element) list.insertBefore(element, list.children[index] ?? null);
  });
  while (list.children.length > elements.length) list.lastChild.remove();
}

function runRow(run, onchoose, signal) {
  const box = h("input", {
    type: "checkbox",
    "aria-label": t("runs.choose", { name: run.name }),
    onchange: () => onchoose(run.id, box.checked),
  });
  const badge = h("span");
  const spark = h("a", {
    class: "run-spark",
    href: link("run", [run.id]),
    tabindex: -1,
    "aria-hidden": "true",
  });
  const facts = h("span", { class: "faint" });
  const meter = bar(0, t("run.progress"));
  const far = h("span", { class: "small num soft" });
  const losses = h("dl", { class: "figures num" });
  let drawnAt = null;
  const element = h(
    "li",
    { class: "run", dataset: { run: run.id } },
    box,
    h(
      "div",
      { class: "run-name" },
      h("div", { class: "row" }, h("a", { href: link("run", [run.id]) }, run.id), badge),
      facts,
    ),
    spark,
    h("div", { class: "run-progress" }, meter, far),
    losses,
  );
  function update(now) {
    put(badge, stateBadge(now));
    const kind = [
      now.preset,
      ...(now.mixers ?? []).map((mixer) => mixer.replace("_", "-")),
      now.ternary && t("runs.ternary"),
    ];
    put(
      facts,
      [...kind.filter(Boolean), now.size_bytes && bytes(now.size_bytes), ago(now.updated)]
        .filter(Boolean)
        .join(" · "),
    );
    setBar(meter, now.steps ? now.step / now.steps : 0);
    const left =
      isLive(now) && now.eta_s ? ` · ${t("job.left", { time: duration(now.eta_s) })}` : "";
    put(far, `${number(now.step)} / ${number(now.steps)}${left}`);
    put(
      losses,
      figure(t("run.train_loss"), now.train_loss),
      figure(t("run.eval_loss"), now.eval_loss),
    );
    if (drawnAt === null || (now.step - drawnAt) * 40 > now.steps) {
      drawnAt = now.step;
      drawSpark(spark, now.id, signal);
    }
  }
  return { element, update };
}

const figure = (label, value) => h("div", {}, h("dt", {}, label), h("dd", {}, loss(value)));

// Asked for only once the row is in sight: a list may have hundreds.
function drawSpark(holder, id, signal) {
  const observer = new IntersectionObserver(async ([entry]) => {
    if (!entry.isIntersecting) return;
    observer.disconnect();
    try {
      const query = { tags: "train/loss", points: SPARK_POINTS };
      const { tags } = await get(`runs/${segment(id)}/series`, query, { signal });
      put(holder, sparkline(tags["train/loss"]?.value ?? [], t("run.train_loss")));
    } catch {
      put(holder); // a run without numbers yet
    }
  });
  observer.observe(holder);
  signal.addEventListener("abort", () => observer.disconnect());
}

function welcome(problem) {
  const start = button(t("welcome.start"), () => startFirst(start, problem), {
    class: "primary large",
    id: "first-run",
  });
  const steps = ["data", "train", "talk"].map((step, index) =>
    h(
      "li",
      {},
      h("span", { class: "welcome-number" }, index + 1),
      h(
        "div",
        {},
        h("h3", {}, t(`welcome.${step}`)),
        h("p", { class: "soft small" }, t(`welcome.${step}.text`)),
      ),
    ),
  );
  return h(
    "div",
    { class: "welcome panel" },
    h(
      "div",
      { class: "trits", "aria-hidden": "true" },
      [..."0+-+0-+00-+-0+-0+-"].map((trit) =>
        h("i", { class: { "+": "plus", "-": "minus", 0: "zero" }[trit] }),
      ),
    ),
    h("h2", {}, t("welcome.title")),
    h("p", { class: "soft lead" }, t("welcome.text")),
    h(
      "div",
      { class: "row" },
      start,
      h("a", { class: "button large", href: link("data") }, t("welcome.own")),
    ),
    h("ol", { class: "welcome-steps" }, steps),
  );
}

async function startFirst(start, problem) {
  start.disabled = true;
  try {
    const facts = await info();
    const preset =
      facts.presets?.some((entry) => (entry.name ?? entry) === FIRST_PRESET) === false
        ? ""
        : FIRST_PRESET;
    const checked = await post("form/check", { preset, values: {} });
    const { id } = await post("runs", {
      config: checked.config,
      name: "my-first-model",
      device: "",
    });
    toast(t("runs.started"));
    go("run", [id]);
  } catch (error) {
    start.disabled = false;
    showRefusal(problem, error);
  }
}

function goCompare(chosen) {
  const [first, ...others] = chosen;
  go("run", [first], { with: others.join(",") });
}

/** Opens TensorBoard on some runs (or all) in a tab of its own. */
export async function openTensorBoard(ids, problem) {
  showRefusal(problem, null);
  const page = window.open("", "_blank"); // at once, or the browser takes it for a pop-up
  try {
    const { url } = await post("tensorboard", { runs: ids });
    if (page) page.location = url;
    else location.assign(url);
  } catch (error) {
    page?.close();
    showRefusal(problem, error);
  }
}
