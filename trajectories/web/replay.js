// Plays puzzles being solved: the state is a puzzle and a frame, and everything on the page follows from them.
"use strict";

const FRAMES_A_SECOND = 2, SWATCH = 18;
// How a symbol that a screen reader would pass over is read.
const SPOKEN = { "": "nothing", ".": "blank", " ": "free", "#": "wall", o: "path", S: "start", G: "goal", "|": "border" };
const byId = (id) => document.getElementById(id);
const state = { data: null, shown: [], puzzle: null, frame: 0, timer: null, colours: null, moveCursor: null };

const percent = (value) => `${Math.round(value * 100)} %`;
const gridOf = (puzzle) => ({ ...state.data.grid, rows: puzzle.rows, columns: puzzle.columns });
const before = (puzzle, frame) => (frame ? puzzle.preds[frame - 1] : puzzle.input);
const changedCells = (puzzle, frame) => puzzle.preds[frame].map((token, i) => +(frame > 0 && token !== before(puzzle, frame)[i]));
const isSolved = (puzzle, frame) => puzzle.asked > 0 && puzzle.wrong[frame] === 0;
const lastFrame = (puzzle) => puzzle.halt.length - 1;

function moment(puzzle, frame) {
  const [step, cycle] = puzzle.moments[frame];
  return state.data.cycles > 1 ? `step ${step}, cycle ${cycle} of ${state.data.cycles}` : `step ${step} of ${puzzle.moments.at(-1)[0]}`;
}

function firstFrame(puzzle, holds) {
  const found = puzzle.moments.findIndex((_, frame) => holds(frame));
  return found < 0 ? null : found;
}

// ---- What a choice of puzzle brings -------------------------------------------------------------------------------

function fillPicker() {
  const wavered = (puzzle) => puzzle.moments.some((_, f) => isSolved(puzzle, f)) && !isSolved(puzzle, lastFrame(puzzle));
  const tests = { all: () => true, solved: (p) => isSolved(p, lastFrame(p)), unsolved: (p) => !isSolved(p, lastFrame(p)),
                  wavering: wavered };
  for (const option of byId("filter").options) {
    const count = state.data.puzzles.filter(tests[option.value]).length;
    option.disabled = count === 0;
    option.textContent = `${option.dataset.name} (${count})`;
  }
  state.shown = state.data.puzzles.filter(tests[byId("filter").value]);
  byId("puzzle").replaceChildren(...state.shown.map((puzzle, i) => {
    const verdict = puzzle.asked ? (isSolved(puzzle, lastFrame(puzzle)) ? " ✓" : " ✗") : "";
    return new Option(`${puzzle.name}${verdict}`, i);
  }));
  for (const id of ["previous", "next"]) byId(id).disabled = state.shown.length < 2;
}

function choosePuzzle(index, frame = 0) {
  const wrapped = (index + state.shown.length) % state.shown.length;
  byId("puzzle").value = wrapped;
  state.puzzle = state.shown[wrapped];
  byId("scrubber").max = lastFrame(state.puzzle);
  byId("solution-figure").hidden = !state.puzzle.asked;
  layOut();
  showFrame(Math.min(frame, lastFrame(state.puzzle)));
}

// Everything that depends on the puzzle, the theme or the size of the window, but not on the frame.
function layOut() {
  const puzzle = state.puzzle;
  state.colours = themeColours();
  const narrow = window.innerWidth <= 760;
  const room = document.querySelector(".stage").clientWidth - 32;
  state.side = narrow ? Math.min(room, 360) : Math.min(400, Math.floor(room * 0.42));
  const small = narrow ? Math.floor((room - 16) / 2) : Math.min(230, Math.floor(room * 0.23));
  const grid = gridOf(puzzle);
  byId("given-caption").textContent = grid.kind === "arc" ? "Test input" : "Puzzle";
  paintGrid(byId("given"), grid, puzzle.input, { given: puzzle.given }, state.colours, small);
  byId("given").setAttribute("aria-label", `The puzzle: ${asText(puzzle.input, puzzle)}`);
  if (puzzle.asked) {
    paintGrid(byId("solution"), grid, puzzle.label, { given: puzzle.given }, state.colours, small);
    byId("solution").setAttribute("aria-label", `The solution: ${asText(puzzle.label, puzzle)}`);
  }
  layOutSwatches(grid);
  layOutExamples(puzzle);
  layOutFilm(puzzle, grid);
  layOutChart(puzzle);
  layOutNumbers(puzzle);
}

// The marks as the painter makes them, on a cell of the kind that they are seen on.
function layOutSwatches(grid) {
  const token = Math.max(0, grid.symbols.indexOf({ sudoku: ".", maze: "o", arc: "5" }[grid.kind]));
  for (const mark of ["changed", "wrong"]) {
    paintGrid(byId(`swatch-${mark}`), { ...grid, rows: 1, columns: 1, box: null }, [token], { [mark]: [1] }, state.colours, SWATCH);
  }
}

function layOutExamples(puzzle) {
  const root = byId("examples");
  root.hidden = !puzzle.examples.length;
  root.replaceChildren(...puzzle.examples.map(([input, output], i) => {
    const figure = document.createElement("figure");
    figure.append(exampleCanvas(input, `Demonstration ${i + 1}, input`), "→", exampleCanvas(output, `Demonstration ${i + 1}, output`));
    return figure;
  }));
}

function exampleCanvas(cells, name) {
  const canvas = document.createElement("canvas");
  const grid = { ...state.data.grid, rows: cells.length, columns: cells[0].length };
  paintGrid(canvas, grid, cells.flat(), {}, state.colours, 96);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${name}: ${cells.map((row) => row.map((token) => grid.symbols[token]).join("")).join(" / ")}`);
  return canvas;
}

function layOutFilm(puzzle, grid) {
  byId("film").replaceChildren(...puzzle.moments.flatMap(([step, cycle], frame) => {
    if (cycle !== state.data.cycles) return [];
    const cell = document.createElement("div"), canvas = document.createElement("canvas");
    paintGrid(canvas, grid, puzzle.preds[frame], { given: puzzle.given, wrong: wrongCells(puzzle, frame) }, state.colours, 66);
    cell.append(canvas, String(step));
    cell.dataset.frame = frame;
    cell.onclick = () => showFrame(frame);
    return [cell];
  }));
}

function layOutChart(puzzle) {
  const share = puzzle.wrong.map((_, frame) => puzzle.right[frame] / Math.max(1, puzzle.asked));
  const curves = [
    { css: "confidence", values: puzzle.confidence.map((cells) => total(cells) / cells.length) },
    { css: "halt", values: puzzle.halt },
  ];
  if (puzzle.asked) curves.push({ css: "answer", values: share });
  const ticks = puzzle.moments.flatMap(([step, cycle], frame) => (cycle === state.data.cycles ? [{ frame, text: step }] : []));
  const solved = firstFrame(puzzle, (frame) => isSolved(puzzle, frame)), done = puzzle.wants_frame;
  const marks = [];
  if (solved !== null) marks.push({ frame: solved, text: "solved", css: "right" });
  if (done !== null && done !== solved) marks.push({ frame: done, text: "says it is done", css: "halt" });
  state.moveCursor = drawChart(byId("chart"), curves, puzzle.moments.length, ticks, marks, showFrame);
  const course = puzzle.asked ? `cells right from ${percent(share[0])} to ${percent(share.at(-1))}, ` : "";
  const when = solved === null ? "" : `, first solved at ${moment(puzzle, solved)}`;
  byId("chart").setAttribute("aria-label",
    `Chart over ${plural(puzzle.moments.at(-1)[0], "step")}: ${course}halting probability from ` +
    `${percent(puzzle.halt[0])} to ${percent(puzzle.halt.at(-1))}${when}.`);
}

function layOutNumbers(puzzle) {
  const heads = ["moment", "right", "wrong, given cells too", "changed", "mean confidence", "halting probability"];
  const rows = puzzle.moments.map((_, frame) => [
    moment(puzzle, frame), puzzle.asked ? `${puzzle.right[frame]} of ${puzzle.asked}` : "", puzzle.asked ? puzzle.wrong[frame] : "",
    frame ? total(changedCells(puzzle, frame)) : "",
    percent(total(puzzle.confidence[frame]) / puzzle.confidence[frame].length), percent(puzzle.halt[frame])]);
  const line = (cells, name) => {
    const row = document.createElement("tr");
    row.append(...cells.map((text) => Object.assign(document.createElement(name), { textContent: text })));
    return row;
  };
  byId("numbers").replaceChildren(line(heads, "th"), ...rows.map((cells) => line(cells, "td")));
}

// ---- What a choice of frame brings --------------------------------------------------------------------------------

function showFrame(frame) {
  const puzzle = state.puzzle;
  state.frame = Math.max(0, Math.min(frame, lastFrame(puzzle)));
  const now = state.frame, tokens = puzzle.preds[now];
  const wrong = wrongCells(puzzle, now), changed = changedCells(puzzle, now);
  const ticked = (id, value) => (byId(id).checked ? value : null);
  const marks = {
    given: puzzle.given.map((given, i) => given & !wrong[i]),
    wrong: ticked("show-wrong", wrong),
    changed: ticked("show-changed", changed),
    confidence: ticked("show-confidence", puzzle.confidence[now]),
  };
  paintGrid(byId("answer"), gridOf(puzzle), tokens, marks, state.colours, state.side);
  byId("answer-caption").textContent = `Answer after ${moment(puzzle, now)}`;
  byId("answer").setAttribute("aria-label", describe(puzzle, now, wrong));
  byId("scrubber").value = now;
  byId("scrubber").setAttribute("aria-valuetext", moment(puzzle, now));
  byId("text").textContent = asText(tokens, puzzle, "\n");
  showStatus(puzzle, now, total(changed));
  state.moveCursor(now);
  for (const cell of byId("film").children) {
    const active = puzzle.moments[cell.dataset.frame][0] === puzzle.moments[now][0];
    cell.classList.toggle("now", active);
    if (active) byId("film").scrollTo({ left: cell.offsetLeft - byId("film").offsetLeft - byId("film").clientWidth / 2 + 40 });
  }
  history.replaceState(null, "", `#row=${puzzle.row}&frame=${now}`);
}

function showStatus(puzzle, frame, changes) {
  const parts = [];
  const add = (text, css) => parts.push(Object.assign(document.createElement("span"), { textContent: text, className: css || "" }));
  if (isSolved(puzzle, frame)) add("solved ✓", "solved");
  else if (puzzle.asked) {
    add(`${puzzle.right[frame]} of ${plural(puzzle.asked, "cell")} right`);
    const changed = givenChanged(puzzle, wrongCells(puzzle, frame));
    if (changed) add(changed, "wrong");
    if (puzzle.outside[frame]) add(`${plural(puzzle.outside[frame], "wrong cell")} beyond the picture`, "wrong");
  }
  if (frame) add(`${changes} changed`);
  add(`halting probability ${percent(puzzle.halt[frame])}`);
  byId("status").setAttribute("aria-live", state.timer === null ? "polite" : "off");
  byId("status").replaceChildren(...parts.flatMap((part, i) => (i ? [" · ", part] : [part])));
}

function describe(puzzle, frame, wrong) {
  const head = `Answer after ${moment(puzzle, frame)}`;
  if (!puzzle.asked) return `${head}: ${asText(puzzle.preds[frame], puzzle)}`;
  const symbols = state.data.grid.symbols;
  const name = (token) => SPOKEN[symbols[token]] || symbols[token];
  const places = [...wrong.keys()].filter((i) => wrong[i]).map((i) =>
    `row ${Math.floor(i / puzzle.columns) + 1} column ${(i % puzzle.columns) + 1} has ${name(puzzle.preds[frame][i])} for ${name(puzzle.label[i])}`);
  if (!places.length) return `${head}: all cells right.`;
  const rest = places.length > 6 ? ` and ${places.length - 6} more` : "", changed = givenChanged(puzzle, wrong);
  return `${head}: ${plural(places.length, "cell")} wrong${changed && `, ${changed}`}: ${places.slice(0, 6).join(", ")}${rest}.`;
}

function asText(tokens, puzzle, newline = " / ") {
  const symbols = state.data.grid.symbols, lines = [];
  for (let row = 0; row < puzzle.rows; row++) {
    const cells = Array.from(tokens.subarray(row * puzzle.columns, (row + 1) * puzzle.columns));
    lines.push(cells.map((token) => (token === state.data.no_label ? "?" : symbols[token] || "·")).join(""));
  }
  return lines.join(newline);
}

// ---- Playing, keys, choices ---------------------------------------------------------------------------------------

function play(on) {
  clearInterval(state.timer);
  state.timer = null;
  if (on) {
    if (state.frame === lastFrame(state.puzzle)) showFrame(0);
    const interval = 1000 / (FRAMES_A_SECOND * byId("speed").value);
    state.timer = setInterval(() => {
      if (state.frame >= lastFrame(state.puzzle)) play(false);
      else showFrame(state.frame + 1);
    }, interval);
  }
  byId("play").textContent = on ? "Pause" : "Play";
  if (!on) byId("status").setAttribute("aria-live", "polite");
}

function go(frame) {
  play(false);
  showFrame(frame);
}

function stepPuzzle(by) {
  play(false);
  choosePuzzle(Number(byId("puzzle").value) + by);
}

function repaint() {
  layOut();
  showFrame(state.frame);
}

function flip(id) {
  byId(id).checked = !byId(id).checked;
  showFrame(state.frame);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const target = event.target;
  if (target.matches("select, summary") || (target.matches("button, input[type=checkbox]") && [" ", "Enter"].includes(event.key))) return;
  const actions = {
    " ": () => play(state.timer === null), ArrowLeft: () => go(state.frame - 1), ArrowRight: () => go(state.frame + 1),
    Home: () => go(0), End: () => go(lastFrame(state.puzzle)), n: () => stepPuzzle(1), p: () => stepPuzzle(-1),
    c: () => flip("show-changed"), w: () => flip("show-wrong"), o: () => flip("show-confidence"), t: () => setTheme(otherTheme()),
  };
  const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action || !state.puzzle) return;
  event.preventDefault();
  action();
}

// Shows the row and the frame that the address names, the first of them where it names none that there is.
function followAddress() {
  play(false);
  const wanted = new URLSearchParams(location.hash.slice(1));
  const isWanted = (puzzle) => String(puzzle.row) === wanted.get("row");
  if (!state.shown.some(isWanted)) byId("filter").value = "all";
  fillPicker();
  choosePuzzle(Math.max(0, state.shown.findIndex(isWanted)), Math.trunc(Number(wanted.get("frame"))) || 0);
}

function listen() {
  const on = (id, type, action) => byId(id).addEventListener(type, action);
  on("play", "click", () => play(state.timer === null));
  on("first", "click", () => go(0));
  on("back", "click", () => go(state.frame - 1));
  on("forward", "click", () => go(state.frame + 1));
  on("last", "click", () => go(lastFrame(state.puzzle)));
  on("scrubber", "input", () => go(Number(byId("scrubber").value)));
  on("speed", "change", () => play(state.timer !== null));
  on("puzzle", "change", () => { play(false); choosePuzzle(Number(byId("puzzle").value)); });
  on("filter", "change", () => { play(false); fillPicker(); choosePuzzle(0); });
  on("previous", "click", () => stepPuzzle(-1));
  on("next", "click", () => stepPuzzle(1));
  document.addEventListener("theme", repaint);
  for (const id of ["show-changed", "show-wrong", "show-confidence"]) on(id, "change", () => showFrame(state.frame));
  document.addEventListener("keydown", onKey);
  window.addEventListener("hashchange", followAddress);
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;  // a phone's address bar changes the height alone
    width = window.innerWidth;
    repaint();
  });
}

async function start() {
  state.data = await readPayload();
  if (!state.data) return;
  followAddress();
  listen();
  document.body.dataset.ready = "true";
}

start();
