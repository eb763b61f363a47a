// One stream of server events for the whole page. It is closed while nobody looks: browsers allow
// about six connections to a server, so that many open tabs would otherwise stop each other.

const POLL_MS = 2000;
const GIVE_UP_AFTER = 4; // failed connections in a row, then polling
const TYPES = ["runs", "run", "metrics", "log", "system", "job"];

const target = new EventTarget();
const watched = new Map(); // run id → how many watch it
let source = null;
let lastId = "";
let failures = 0;
let polling = 0;
let reopening = 0;

/** Calls `handler(data)` for each event of a type until `signal` is aborted. */
export function on(type, handler, signal) {
  target.addEventListener(type, (event) => handler(event.detail), { signal });
}

/** Asks for metrics and log of a run until `signal` is aborted. */
export function watch(id, signal) {
  watched.set(id, (watched.get(id) ?? 0) + 1);
  signal.addEventListener("abort", () => {
    const left = watched.get(id) - 1;
    if (left) watched.set(id, left);
    else watched.delete(id);
    restart();
  });
  restart();
}

/** Opens the stream, and closes and reopens it as the tab is hidden and shown. */
export function start() {
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  // A page kept for the back button must not keep its connection.
  addEventListener("pagehide", close);
  addEventListener("pageshow", (event) => event.persisted && open());
  open();
}

function restart() {
  lastId = ""; // offsets are those of the runs that were watched before
  clearTimeout(reopening);
  reopening = setTimeout(() => {
    close();
    if (!document.hidden) open();
  }, 0);
}

function address(path) {
  const query = new URLSearchParams([...watched.keys()].map((id) => ["run", id]));
  if (lastId) query.set("since", lastId);
  return `api/${path}${query.size ? `?${query}` : ""}`;
}

function open() {
  if (source || polling || document.hidden) return;
  source = new EventSource(address("events"));
  source.onopen = () => {
    failures = 0;
    tell("connection", { online: true });
  };
  source.onerror = () => {
    failures += 1;
    tell("connection", { online: false });
    if (failures >= GIVE_UP_AFTER) {
      close();
      poll();
    } else if (source?.readyState === EventSource.CLOSED) {
      close();
      reopening = setTimeout(open, POLL_MS);
    }
  };
  for (const type of TYPES) {
    source.addEventListener(type, (event) => {
      if (event.lastEventId) lastId = event.lastEventId;
      tell(type, JSON.parse(event.data));
    });
  }
}

function close() {
  source?.close();
  source = null;
  clearTimeout(polling);
  polling = 0;
}

async function poll() {
  try {
    const answer = await fetch(address("poll"));
    if (!answer.ok) throw new Error(answer.statusText);
    const { events, id } = await answer.json();
    tell("connection", { online: true });
    for (const event of events) {
      if (event.id) lastId = event.id;
      tell(event.event, event.data);
    }
    if (id) lastId = id;
  } catch {
    tell("connection", { online: false });
  }
  if (!document.hidden && !source) polling = setTimeout(poll, POLL_MS);
}

function tell(type, detail) {
  target.dispatchEvent(new CustomEvent(type, { detail }));
}
