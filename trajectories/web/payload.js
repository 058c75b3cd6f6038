// The page's data: JSON behind its length, then the frames of every puzzle, deflated and in base64.
"use strict";

const wrongCells = (puzzle, frame) => puzzle.known.map((known, i) => known & (puzzle.label[i] !== puzzle.preds[frame][i]));
const total = (cells) => cells.reduce((sum, cell) => sum + cell, 0);
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
// Given cells that the answer overwrote, as a phrase, which is empty where there are none: they are not asked for.
const givenChanged = (puzzle, wrong) => {
  const count = total(puzzle.given.map((given, i) => given & wrong[i]));
  return count ? `${plural(count, "given cell")} changed` : "";
};

// Null, and a word on the page, where the browser cannot inflate it.
async function readPayload() {
  if (!("DecompressionStream" in window)) {
    const text = "This browser is too old for the page: it needs DecompressionStream (any browser since 2023).";
    const notice = Object.assign(document.createElement("p"), { className: "notice", textContent: text });
    document.querySelector("main").prepend(notice);
    return null;
  }
  const text = document.getElementById("payload").textContent.trim();
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const length = new DataView(bytes.buffer).getUint32(0, true);
  const data = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  let at = 4 + length;
  for (const puzzle of data.puzzles) {
    const cells = puzzle.rows * puzzle.columns, frames = puzzle.halt.length;
    const take = () => bytes.subarray(at, (at += cells));
    puzzle.input = take();
    puzzle.label = take();
    puzzle.given = take();
    puzzle.known = puzzle.label.map((token) => +(token !== data.no_label));
    // Frames are differences from the one before, which are zeros for the most part.
    const series = () => {
      const all = [];
      for (let frame = 0; frame < frames; frame++) {
        const now = Uint8Array.from(take());
        if (frame) for (let i = 0; i < cells; i++) now[i] += all[frame - 1][i];
        all.push(now);
      }
      return all;
    };
    puzzle.preds = series();
    puzzle.confidence = series().map((frame) => Float32Array.from(frame, (value) => value / data.confidence_steps));
  }
  return data;
}
