// What a reader has chosen for good, as far as the browser keeps it.

/** A choice, or `initial` where none was made. */
export function stored(name, initial) {
  try {
    return JSON.parse(localStorage.getItem(`bitttt.${name}`)) ?? initial;
  } catch {
    return initial;
  }
}

/** Keeps a choice. */
export function store(name, value) {
  try {
    localStorage.setItem(`bitttt.${name}`, JSON.stringify(value));
  } catch {
    // Without storage the choice holds until the page is left.
  }
}
