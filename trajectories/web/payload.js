// The page's data: JSON behind its length, then the frames of every puzzle, deflated and in base64.
"use strict";

async function readPayload(text) {
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
    puzzle.confidence = series().map((frame) => Float32Array.from(frame, (value) => value / 63));
  }
  return data;
}
