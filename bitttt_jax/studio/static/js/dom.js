// Elements are never made from HTML: text from models, logs and names can only ever become text nodes.

const SVG = "http://www.w3.org/2000/svg";
const PROPERTIES = new Set([
  "value",
  "checked",
  "disabled",
  "hidden",
  "indeterminate",
  "open",
  "selected",
  "readOnly",
  "multiple",
]);

/** An HTML element: h("button", {class: "primary", onclick: start}, "Start"). */
export function h(tag, props = {}, ...children) {
  return fill(setProps(document.createElement(tag), props), children);
}

/** An SVG element. */
export function svg(tag, props = {}, ...children) {
  return fill(setProps(document.createElementNS(SVG, tag), props), children);
}

/** Replaces an element's children. */
export function put(element, ...children) {
  element.replaceChildren();
  return fill(element, children);
}

/** Sets a CSS custom property, which the style sheets turn into lengths and colours. */
export function setVar(element, name, value) {
  element.style.setProperty(`--${name}`, String(value));
}

let ids = 0;

/** An id that no other element has. */
export function uniqueId(prefix = "id") {
  ids += 1;
  return `${prefix}-${ids}`;
}

/** Calls a function at most once per frame, with the arguments of the last call. */
export function perFrame(callback) {
  let waiting = null;
  return (...args) => {
    const scheduled = waiting !== null;
    waiting = args;
    if (!scheduled) {
      requestAnimationFrame(() => {
        const latest = waiting;
        waiting = null;
        callback(...latest);
      });
    }
  };
}

/** Calls a function once nothing has been asked for during `milliseconds`. */
export function debounce(callback, milliseconds) {
  let timer = 0;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => callback(...args), milliseconds);
  };
}

function setProps(element, props) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined) continue;
    if (name === "class") element.setAttribute("class", value);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name === "vars") Object.entries(value).forEach(([key, v]) => setVar(element, key, v));
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (PROPERTIES.has(name)) element[name] = value;
    else if (name.startsWith("aria-")) element.setAttribute(name, String(value));
    else if (value !== false) element.setAttribute(name, value === true ? "" : String(value));
  }
  return element;
}

function fill(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false || child === "") continue;
    element.append(child instanceof Node ? child : String(child));
  }
  return element;
}
