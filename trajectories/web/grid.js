// Paints a grid of tokens on a canvas: Sudoku, maze or ARC, in the task's own colours.
"use strict";

// Colours of the theme, read once a theme from the style sheet.
function themeColours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["paper", "ink", "muted", "rule", "answer", "wrong", "right", "halt",
                 "given-cell", "changed-cell", "wrong-cell", "missing-cell", "no-colour"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

// grid: {kind, rows, columns, box, symbols, palette}; tokens: [rows * columns];
// marks: {given, wrong, changed, confidence}, each null or as long as the tokens. A cell is never larger than LARGEST.
const LARGEST = 66;

function paintGrid(canvas, grid, tokens, marks, colours, side) {
  const { rows, columns } = grid;
  const cell = Math.max(1, Math.min(LARGEST, Math.floor(side / Math.max(rows, columns))));
  const ratio = window.devicePixelRatio || 1;
  const width = cell * columns + 2, height = cell * rows + 2;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, ratio, ratio);
  pen.fillStyle = colours.paper;
  pen.fillRect(-1, -1, width, height);
  const painter = { sudoku: paintSudoku, maze: paintMaze, arc: paintArc }[grid.kind] || paintSymbols;
  painter(pen, grid, tokens, marks, colours, cell);
}

function eachCell(grid, cell, visit) {
  for (let i = 0; i < grid.rows * grid.columns; i++) {
    visit(i, (i % grid.columns) * cell, Math.floor(i / grid.columns) * cell);
  }
}

function opacityOf(marks, i) {
  return marks.confidence ? 0.25 + 0.75 * marks.confidence[i] : 1;
}

function drawRules(pen, grid, cell, rowStep, columnStep, colour, width) {
  pen.strokeStyle = colour;
  pen.lineWidth = width;
  pen.lineCap = "square";
  pen.beginPath();
  for (let row = 0; row <= grid.rows; row += rowStep) {
    pen.moveTo(0, row * cell);
    pen.lineTo(grid.columns * cell, row * cell);
  }
  for (let column = 0; column <= grid.columns; column += columnStep) {
    pen.moveTo(column * cell, 0);
    pen.lineTo(column * cell, grid.rows * cell);
  }
  pen.stroke();
}

// Shapes as well as colours, for those who cannot tell the colours apart.
function drawRing(pen, x, y, cell, colour) {
  const inset = Math.max(1, cell * 0.09);
  pen.strokeStyle = colour;
  pen.lineWidth = Math.max(1, cell * 0.045);
  pen.strokeRect(x + inset, y + inset, cell - 2 * inset, cell - 2 * inset);
}

// Seen on any colour of the cell.
function drawDoubleRing(pen, x, y, cell) {
  drawRing(pen, x, y, cell, "#000000");
  drawRing(pen, x + 1, y + 1, cell - 2, "#ffffff");
}

function drawWedge(pen, x, y, cell, colour) {
  pen.fillStyle = colour;
  pen.beginPath();
  pen.moveTo(x + cell, y);
  pen.lineTo(x + cell, y + cell * 0.3);
  pen.lineTo(x + cell * 0.7, y);
  pen.fill();
}

function drawCross(pen, x, y, cell, colours) {
  for (const [colour, width] of [[colours.paper, 0.2], [colours.wrong, 0.1]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = Math.max(1, cell * width);
    pen.lineCap = "round";
    pen.beginPath();
    pen.moveTo(x + cell * 0.32, y + cell * 0.32);
    pen.lineTo(x + cell * 0.68, y + cell * 0.68);
    pen.moveTo(x + cell * 0.68, y + cell * 0.32);
    pen.lineTo(x + cell * 0.32, y + cell * 0.68);
    pen.stroke();
  }
}

function paintSudoku(pen, grid, tokens, marks, colours, cell) {
  paintLetters(pen, grid, tokens, marks, colours, cell, (token) => (token > 1 ? grid.symbols[token] : ""));
  drawRules(pen, grid, cell, 1, 1, colours.rule, 1);
  const [boxRows, boxColumns] = grid.box || [grid.rows, grid.columns];
  drawRules(pen, grid, cell, boxRows, boxColumns, colours.ink, 2);
}

function paintSymbols(pen, grid, tokens, marks, colours, cell) {
  paintLetters(pen, grid, tokens, marks, colours, cell, (token) => grid.symbols[token] || "");
  drawRules(pen, grid, cell, 1, 1, colours.rule, 1);
}

function paintLetters(pen, grid, tokens, marks, colours, cell, letterOf) {
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  eachCell(grid, cell, (i, x, y) => {
    const given = marks.given && marks.given[i], wrong = marks.wrong && marks.wrong[i];
    const changed = marks.changed && marks.changed[i];
    const shade = wrong ? "wrong-cell" : changed ? "changed-cell" : given ? "given-cell" : null;
    if (shade) {
      pen.fillStyle = colours[shade];
      pen.fillRect(x, y, cell, cell);
    }
    if (changed && cell >= 14) drawRing(pen, x, y, cell, colours.halt);
    if (wrong && cell >= 14) drawWedge(pen, x, y, cell, colours.wrong);
    pen.globalAlpha = given ? 1 : opacityOf(marks, i);
    pen.fillStyle = wrong ? colours.wrong : given ? colours.ink : colours.answer;
    pen.font = `${given ? 700 : 500} ${cell * 0.58}px system-ui, sans-serif`;
    pen.fillText(letterOf(tokens[i]), x + cell / 2, y + cell * 0.54);
    pen.globalAlpha = 1;
  });
}

function paintMaze(pen, grid, tokens, marks, colours, cell) {
  const path = grid.symbols.indexOf("o"), ends = [grid.symbols.indexOf("S"), grid.symbols.indexOf("G")];
  eachCell(grid, cell, (i, x, y) => {
    const wrong = marks.wrong && marks.wrong[i];
    const colour = wrong ? (tokens[i] === path ? colours.wrong : colours["missing-cell"]) : grid.palette[tokens[i]];
    if (colour) {
      pen.globalAlpha = tokens[i] === path ? opacityOf(marks, i) : 1;
      pen.fillStyle = colour;
      pen.fillRect(x, y, cell, cell);
      pen.globalAlpha = 1;
    }
    if (cell < 5) return;
    if (marks.changed && marks.changed[i]) drawDoubleRing(pen, x, y, cell);
    if (wrong) drawCross(pen, x, y, cell, colours);
  });
  eachCell(grid, cell, (i, x, y) => {  // start and goal last, as they are larger than their cells
    if (!ends.includes(tokens[i]) || cell < 4) return;
    pen.fillStyle = grid.palette[tokens[i]];
    pen.beginPath();
    pen.arc(x + cell / 2, y + cell / 2, cell * 0.75, 0, 2 * Math.PI);
    pen.fill();
  });
  drawRules(pen, grid, cell, grid.rows, grid.columns, colours.rule, 1);
}

function paintArc(pen, grid, tokens, marks, colours, cell) {
  eachCell(grid, cell, (i, x, y) => {
    const colour = grid.palette[tokens[i]];
    pen.globalAlpha = colour ? opacityOf(marks, i) : 0.4;
    pen.fillStyle = colour || colours["no-colour"];
    pen.fillRect(x, y, cell, cell);
    pen.globalAlpha = 1;
    if (!colour || cell < 4) return;  // beyond the grid there are no lines
    pen.strokeStyle = "#5b6470";
    pen.lineWidth = 0.6;
    pen.strokeRect(x, y, cell, cell);
  });
  eachCell(grid, cell, (i, x, y) => {
    if (cell < 5) return;
    if (marks.changed && marks.changed[i]) drawDoubleRing(pen, x, y, cell);
    if (marks.wrong && marks.wrong[i]) drawCross(pen, x, y, cell, colours);
  });
}
