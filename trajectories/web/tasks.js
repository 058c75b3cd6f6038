"use strict";

setTheme(preferredTheme());
document.getElementById("theme").addEventListener("click", () => setTheme(otherTheme()));
