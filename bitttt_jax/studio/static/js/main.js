// Starts the pages: language, events, the rail, and the page of the address.

import { drawRail, followRuns, listenForKeys, markPage } from "./components/shell.js";
import { refusal } from "./components/problem.js";
import { on, start as startEvents } from "./events.js";
import { loadLanguage, t } from "./i18n.js";
import { drawData } from "./pages/data.js";
import { drawExport } from "./pages/export.js";
import { drawNew } from "./pages/new.js";
import { drawPlay } from "./pages/play.js";
import { drawRun } from "./pages/run.js";
import { drawRuns } from "./pages/runs.js";
import { drawSystem } from "./pages/system.js";
import { draw, route } from "./router.js";
import { start as startStore } from "./store.js";

const OFFLINE_MS = 1500; // a short break isn't worth a word

const main = document.getElementById("main");
const rail = document.getElementById("rail");

route("runs", drawRuns);
route("run", drawRun);
route("new", drawNew);
route("data", drawData);
route("play", drawPlay);
route("export", drawExport);
route("system", drawSystem);

async function show() {
  try {
    await draw(main, (place) => markPage(rail, place.name));
  } catch (error) {
    main.append(refusal(error));
    throw error; // for the console: a fault of the page, not of the user
  }
}

async function go() {
  main.focus({ preventScroll: true });
  scrollTo(0, 0);
  await show();
}

function showConnection() {
  const banner = document.getElementById("connection");
  let timer = 0;
  on(
    "connection",
    ({ online }) => {
      clearTimeout(timer);
      if (online) banner.hidden = true;
      else
        timer = setTimeout(
          () => ((banner.textContent = t("connection.lost")), (banner.hidden = false)),
          OFFLINE_MS,
        );
    },
    new AbortController().signal,
  );
}

async function redraw() {
  drawRail(rail, redraw);
  document.getElementById("skip-link").textContent = t("skip");
  await refreshDot();
  await show();
}

await loadLanguage();
startStore();
showConnection();
startEvents();
listenForKeys();
document
  .getElementById("skip-link")
  .addEventListener("click", (event) => (event.preventDefault(), main.focus()));
addEventListener("hashchange", go);
const dot = followRuns(rail);
const refreshDot = () => dot().catch(() => {});
await redraw();
