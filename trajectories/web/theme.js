// Light and dark: that of the system until the reader chooses.
"use strict";

function preferredTheme() {
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

function otherTheme() {
  return document.documentElement.dataset.theme === "dark" ? "light" : "dark";
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  document.dispatchEvent(new Event("theme"));
}

document.getElementById("theme").addEventListener("click", () => setTheme(otherTheme()));
setTheme(preferredTheme());
