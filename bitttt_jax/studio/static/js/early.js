// Before the first paint, so that a dark page doesn't flash white. Not a module: those come later.
(() => {
  const root = document.documentElement;
  try {
    root.dataset.theme = localStorage.getItem("bitttt.theme") || "auto";
    root.lang = localStorage.getItem("bitttt.language") || navigator.language.slice(0, 2);
  } catch {
    root.dataset.theme = "auto"; // storage can be forbidden
  }
})();
