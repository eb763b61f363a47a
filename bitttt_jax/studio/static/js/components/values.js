// Values of configuration fields, as text and back.

/** How a field shows a value. */
export function toText(value) {
  if (value === null || value === undefined) return "";
  if (Array.isArray(value)) return value.map(toText).join(",");
  if (typeof value === "object") return value.path ?? JSON.stringify(value);
  return String(value);
}

/** What was typed, as a value; text that is no number stays text, for the server to refuse. */
export function fromInput(field, text) {
  const trimmed = text.trim();
  if (field.type === "int" || field.type === "float") {
    const plain = trimmed.replaceAll("_", "");
    return plain !== "" && Number.isFinite(Number(plain)) ? Number(plain) : trimmed;
  }
  if (field.type === "list")
    return trimmed
      .split(",")
      .map((part) => part.trim())
      .filter(Boolean);
  return text;
}

/** Whether two values of a field mean the same. */
export function sameValue(a, b) {
  return typeof a === typeof b && toText(a) === toText(b);
}
