// One stream of server events for the whole page. Browsers allow about six connections to a server,
// so that many open tabs would stop each other: the stream is closed while nobody looks, and at most
// a few windows have one at a time. The others ask now and then.

const POLL_MS = 2000;
const STREAMS = 3;
const GIVE_UP_AFTER = 4; // failed connections in a row, then polling
const TYPES = ["runs", "run", "metrics", "log", "system", "job"];

const target = new EventTarget();
const watched = new Map(); // run id → cursors
let source = null;
let release = null; // gives this window's slot for a stream back
let opening = false;
let lastId = "";
let failures = 0;
let polling = 0;
let reopening = 0;

/** Calls `handler(data)` for each event of a type until `signal` is aborted. */
export function on(type, handler, signal) {
  target.addEventListener(type, (event) => handler(event.detail), { signal });
}

/**
 * Asks for metrics and log of a run until `signal` is aborted.
 *
 * @param {string[]} cursors up to where they are known already, as the server's answers say it.
 */
export function watch(id, cursors, signal) {
  watched.set(id, cursors);
  signal.addEventListener("abort", () => {
    if (watched.get(id) !== cursors) return; // another page watches it by now
    watched.delete(id);
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
  const known = lastId ? [lastId] : [...watched.values()].flat();
  for (const cursor of known) query.append("since", cursor);
  return `api/${path}${query.size ? `?${query}` : ""}`;
}

async function open() {
  if (release || polling || opening || document.hidden) return;
  opening = true;
  release = await takeSlot();
  opening = false;
  if (document.hidden) close();
  else if (release) listen();
  else poll();
}

function listen() {
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
  release?.();
  release = null;
  clearTimeout(polling);
  polling = 0;
}

// Resolves with a function that gives the slot back, or with null if all are taken.
async function takeSlot() {
  if (!navigator.locks) return () => {}; // only there on safe origins
  for (let slot = 0; slot < STREAMS; slot += 1) {
    const given = await new Promise((resolve) => {
      const hold = (lock) => (lock ? new Promise((done) => resolve(done)) : resolve(null));
      navigator.locks.request(`bitttt.stream.${slot}`, { ifAvailable: true }, hold);
    });
    if (given) return given;
  }
  return null;
}

async function poll() {
  polling = -1; // being asked for
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
  if (document.hidden) polling = 0;
  else polling = setTimeout(again, POLL_MS);
}

// A slot may have become free; where streams don't get through, there is nothing but asking.
function again() {
  polling = 0;
  if (failures >= GIVE_UP_AFTER) poll();
  else open();
}

function tell(type, detail) {
  target.dispatchEvent(new CustomEvent(type, { detail }));
}
