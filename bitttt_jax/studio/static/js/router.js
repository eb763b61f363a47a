// The address after # says which page is shown: #/run/NAME/log?with=OTHER.

const routes = new Map();
let current = null;

/** Says which function draws a page: `draw(main, {args, query}, signal)`. */
export function route(name, draw) {
  routes.set(name, draw);
}

/** The address of a page. */
export function link(name, args = [], query = {}) {
  const path = [name, ...args.map(encodeURIComponent)].join("/");
  const search = new URLSearchParams(Object.entries(query).filter(([, value]) => value));
  return `#/${path}${search.size ? `?${search}` : ""}`;
}

/** Goes to a page. */
export function go(name, args, query) {
  location.hash = link(name, args, query);
}

/** Changes the address without drawing the page anew. */
export function note(name, args, query) {
  history.replaceState(null, "", link(name, args, query));
}

/** Where the page is: {name, args, query}. */
export function here() {
  const [path, search = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...args] = path.split("/").map(decode);
  return { name: name || "runs", args, query: Object.fromEntries(new URLSearchParams(search)) };
}

/** Draws the page of the present address. */
export async function draw(main, onchange) {
  const place = here();
  current?.abort();
  current = new AbortController();
  const { signal } = current;
  main.replaceChildren();
  main.dataset.page = place.name;
  onchange(place);
  const page = routes.get(place.name) ?? routes.get("runs");
  await page(main, place, signal);
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
