// A line chart over the frames of a solve, with a cursor that follows the scrubber and can be dragged.
"use strict";

const SVG = "http://www.w3.org/2000/svg";

function svg(parent, name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

// curves: [{name, css, values in [0, 1]}]; ticks: [{frame, text}]; marks: [{frame, text, css}]
function drawChart(root, curves, frames, ticks, marks, onPick) {
  root.replaceChildren();
  const width = Math.max(260, root.clientWidth), height = 200;
  const left = 44, right = width - 14, top = 42, bottom = height - 40;
  const x = (frame) => (frames === 1 ? (left + right) / 2 : left + ((right - left) * frame) / (frames - 1));
  const y = (value) => bottom - (bottom - top) * value;
  root.setAttribute("viewBox", `0 0 ${width} ${height}`);
  for (const [value, text] of [[0, "0"], [0.5, "50 %"], [1, "100 %"]]) {
    svg(root, "line", { x1: left, x2: right, y1: y(value), y2: y(value), class: "rule" });
    svg(root, "text", { x: left - 8, y: y(value) + 4, class: "tick", "text-anchor": "end" }, text);
  }
  const room = Math.ceil((ticks.length * 26) / (right - left));
  ticks.forEach(({ frame, text }, i) => {
    if (i % room) return;
    svg(root, "text", { x: x(frame), y: bottom + 17, class: "tick", "text-anchor": "middle" }, text);
  });
  svg(root, "text", { x: (left + right) / 2, y: height - 6, class: "tick", "text-anchor": "middle" }, "ACT step");
  const cursor = svg(root, "line", { y1: top - 6, y2: bottom, class: "cursor" });
  marks.forEach(({ frame, text, css }, i) => {
    const line = top - 12 - 16 * i;
    svg(root, "path", { d: `M${x(frame)} ${line + 4}l-5 -9h10z`, class: `mark ${css}` });
    const late = frame > frames / 2;
    const place = { x: x(frame), y: line + 3, dx: late ? -9 : 9, "text-anchor": late ? "end" : "start" };
    svg(root, "text", { ...place, class: `note ${css}` }, text);
  });
  const dots = curves.map(({ css, values }) => {
    const points = values.map((value, frame) => `${x(frame).toFixed(1)},${y(value).toFixed(1)}`);
    svg(root, "polyline", { points: points.join(" "), class: `curve ${css}` });
    return svg(root, "circle", { r: 5, class: `dot ${css}` });
  });
  const pick = (event) => {
    const box = root.getBoundingClientRect();
    const place = ((event.clientX - box.left) / box.width) * width;
    onPick(Math.max(0, Math.min(frames - 1, Math.round(((place - left) / (right - left)) * (frames - 1)))));
  };
  root.onpointerdown = (event) => {
    root.setPointerCapture(event.pointerId);
    pick(event);
  };
  root.onpointermove = (event) => {
    if (event.buttons) pick(event);
  };
  return (frame) => {
    cursor.setAttribute("x1", x(frame));
    cursor.setAttribute("x2", x(frame));
    curves.forEach(({ values }, i) => {
      dots[i].setAttribute("cx", x(frame));
      dots[i].setAttribute("cy", y(values[frame]));
    });
  };
}
