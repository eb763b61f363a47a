// Calls to the studio's server. Addresses are relative, so that proxies may put it anywhere.

/** What the server refused, in words: what happened, why, and what to try. */
export class ApiError extends Error {
  constructor(status, body) {
    const error = body?.error ?? {};
    super(error.what ?? `HTTP ${status}`);
    this.name = "ApiError";
    this.status = status;
    this.body = body;
    this.what = this.message;
    this.why = error.why ?? "";
    this.fix = error.fix ?? "";
  }
}

/** One segment of a path, whatever a name has in it. */
export const segment = (text) => encodeURIComponent(text);

export async function get(path, query = {}, { signal } = {}) {
  const search = new URLSearchParams(
    Object.entries(query).filter(([, v]) => v !== undefined && v !== null),
  );
  const suffix = search.size ? `?${search}` : "";
  return read(await send(`api/${path}${suffix}`, { signal }));
}

export async function post(path, body = {}, { signal } = {}) {
  return read(await send(`api/${path}`, json("POST", body, signal)));
}

export async function put(path, body = {}, { signal } = {}) {
  return read(await send(`api/${path}`, json("PUT", body, signal)));
}

export async function remove(path, { signal } = {}) {
  return read(await send(`api/${path}`, json("DELETE", {}, signal)));
}

/** Sends a file and reports its progress, which fetch can't. */
export function upload(path, file, { onprogress = () => {}, signal, method = "PUT" } = {}) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, `api/${path}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = (event) => onprogress(event.loaded, event.total || file.size);
    request.onload = () => {
      const body = parse(request.responseText);
      if (request.status < 300) resolve(body);
      else reject(new ApiError(request.status, body));
    };
    request.onerror = () => reject(new ApiError(0, null));
    request.onabort = () => reject(new DOMException("aborted", "AbortError"));
    signal?.addEventListener("abort", () => request.abort(), { once: true });
    request.send(file);
  });
}

/** Posts and yields the answer's server-sent events as they come: [event, data]. */
export async function* stream(path, body, { signal } = {}) {
  const answer = await send(`api/${path}`, json("POST", body, signal));
  if (!answer.ok) await read(answer);
  const decoder = new TextDecoderStream();
  const reader = answer.body.pipeThrough(decoder).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value.replaceAll("\r\n", "\n");
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const event = parseEvent(block);
      if (event) yield event;
    }
  }
}

function parseEvent(block) {
  let name = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  return data.length ? [name, JSON.parse(data.join("\n"))] : null;
}

function json(method, body, signal) {
  const headers = { "Content-Type": "application/json" };
  return { method, headers, body: JSON.stringify(body), signal };
}

async function send(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, null); // the studio isn't there
  }
}

async function read(answer) {
  const body = parse(await answer.text());
  if (!answer.ok) throw new ApiError(answer.status, body);
  return body;
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
