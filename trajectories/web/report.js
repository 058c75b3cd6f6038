// The table of a report: a page of puzzles at a time, each with its input, answer and solution.
"use strict";

const PAGE = 25;
const byId = (id) => document.getElementById(id);
const state = { data: null, shown: [], rows: 0, colours: null };

function repaint() {
  state.colours = themeColours();
  for (const canvas of document.querySelectorAll("#puzzles canvas")) canvas.paint();
}

function canvasOf(puzzle, name, tokens, marks) {
  const canvas = document.createElement("canvas");
  const grid = { ...state.data.grid, rows: puzzle.rows, columns: puzzle.columns };
  canvas.paint = () => paintGrid(canvas, grid, tokens, marks, state.colours, 108);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${name} of ${puzzle.name}: ${Array.from(tokens, (token) => grid.symbols[token] || "·").join("")}`);
  canvas.paint();
  return canvas;
}

function rowOf(puzzle) {
  const row = document.createElement("tr");
  const { row: index, name, asked, right, wrong, halt, given } = puzzle, facts = puzzle.facts;
  const cells = wrongCells(puzzle, 0), changed = givenChanged(puzzle, cells);
  const never = (step) => (step === 0 ? "never" : step);
  const solved = wrong[0] === 0;
  const texts = [name, asked ? (solved ? "solved" : "wrong") : "?", asked ? [`${right[0]} of ${asked}`, changed].filter(Boolean).join(", ") : "",
                 asked ? never(facts.solved_at) : "", facts.settled_at, never(facts.halts_at), facts.changes,
                 `${Math.round(halt[0] * 100)} %`];
  for (const text of texts) row.append(Object.assign(document.createElement("td"), { textContent: text }));
  row.children[1].className = asked ? (solved ? "solved" : "wrong") : "";
  const pictures = [canvasOf(puzzle, "input", puzzle.input, { given }),
                    canvasOf(puzzle, "answer", puzzle.preds[0], { given: given.map((cell, i) => cell & !cells[i]), wrong: cells })];
  if (asked) pictures.push(canvasOf(puzzle, "solution", puzzle.label, { given }));
  for (const picture of pictures) {
    const cell = document.createElement("td");
    cell.append(picture);
    row.append(cell);
  }
  row.dataset.row = index;
  return row;
}

function showMore() {
  const next = state.shown.slice(state.rows, state.rows + PAGE);
  document.querySelector("#puzzles tbody").append(...next.map(rowOf));
  state.rows += next.length;
  byId("count").textContent = `${state.rows} of ${state.shown.length} shown`;
  byId("more").hidden = state.rows >= state.shown.length;
}

function choose() {
  const solved = (puzzle) => puzzle.asked > 0 && puzzle.wrong[0] === 0;
  const tests = { all: () => true, solved, unsolved: (puzzle) => !solved(puzzle) };
  state.shown = state.data.puzzles.filter(tests[byId("filter").value]);
  state.rows = 0;
  document.querySelector("#puzzles tbody").replaceChildren();
  showMore();
}

async function start() {
  state.data = await readPayload();
  if (!state.data) return;
  document.addEventListener("theme", repaint);
  repaint();
  byId("filter").addEventListener("change", choose);
  byId("more").addEventListener("click", showMore);
  choose();
  document.body.dataset.ready = "true";
}

start();
