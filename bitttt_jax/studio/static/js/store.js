// What several pages need: facts about the computer, the schema, the list of runs.

import { get } from "./api.js";
import { on } from "./events.js";

const never = new AbortController().signal;
let infoPromise = null;
let schemaPromise = null;
let runs = null;

/** Facts about the studio and its computer, asked for once. */
export function info() {
  infoPromise ??= get("info").catch((error) => {
    infoPromise = null;
    throw error;
  });
  return infoPromise;
}

/** The configuration's schema, asked for once. */
export function schema() {
  schemaPromise ??= get("schema").catch((error) => {
    schemaPromise = null;
    throw error;
  });
  return schemaPromise;
}

/** The list of runs as it was last told. */
export async function allRuns() {
  runs ??= (await get("runs")).runs;
  return runs;
}

/** Keeps the list of runs up to date. */
export function start() {
  on("runs", (data) => (runs = data.runs), never);
  on(
    "run",
    (run) => (runs = runs?.map((other) => (other.id === run.id ? { ...other, ...run } : other))),
    never,
  );
}

const LIVE = new Set([
  "queued",
  "starting",
  "compiling",
  "running",
  "evaluating",
  "saving",
  "stopping",
]);

/** Whether a run is at work, by what it says of itself. */
export const isLive = (run) => LIVE.has(run.state);
