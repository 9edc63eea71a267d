// Charts over all frames with a common cursor: rows of the batch, KV blocks, waiting requests.

const LEFT = 52, RIGHT = 6;
let WIDE = 1180; // pixels: text stays as large on a narrow page

function measureWidth() {
  WIDE = Math.max(300, byId("timeline").clientWidth);
}

function xOf(run, frame) {
  return LEFT + (WIDE - LEFT - RIGHT) * frame / Math.max(1, run.length);
}

function frameAt(run, chart, event) {
  const box = chart.getBoundingClientRect();
  const x = (event.clientX - box.left) * WIDE / box.width;
  const frame = Math.floor((x - LEFT) / (WIDE - LEFT - RIGHT) * run.length);
  return Math.min(run.length - 1, Math.max(0, frame));
}

// A bar from `low` to `high` in each frame, as one path. Values are scaled to `box`.
function barPath(run, low, high, box) {
  const y = (value) => (box.bottom - (box.bottom - box.top) * value / box.most).toFixed(1);
  let path = "";
  for (let frame = 0; frame < run.length; frame++) {
    if (high[frame] <= low[frame]) continue;
    const left = xOf(run, frame).toFixed(2), right = xOf(run, frame + 1).toFixed(2);
    path += `M${left} ${y(low[frame])}V${y(high[frame])}H${right}V${y(low[frame])}Z`;
  }
  return path;
}

function stepLine(run, values, box) {
  const y = (value) => (box.bottom - (box.bottom - box.top) * value / box.most).toFixed(1);
  const end = (frame) => xOf(run, frame + 1).toFixed(2);
  return values.map((value, frame) => `${frame ? "V" : "M" + LEFT + " "}${y(value)}H${end(frame)}`).join("");
}

function axis(chart, title, box) {
  const line = (y) => svg("line", { x1: LEFT, x2: WIDE - RIGHT, y1: y, y2: y, stroke: INK.line });
  const text = (y, value) => svg("text", { x: LEFT - 6, y: y, "text-anchor": "end" }, value);
  chart.append(line(box.top), line(box.bottom), text(box.top + 4, count(box.most)), text(box.bottom, "0"),
    svg("text", { x: LEFT, y: box.top - 6, class: "strong" }, title));
}

function added(first, second) {
  return first.map((value, i) => value + second[i]);
}

function drawTimeline(run, onFrame) {
  const chart = svg("svg", { viewBox: `0 0 ${WIDE} 306`, role: "img",
    "aria-label": "Rows of the batch, KV blocks and waiting requests of every step" });
  drawRows(run, chart, { top: 20, bottom: 110 });
  drawMemory(run, chart, { top: 136, bottom: 206 });
  drawQueue(run, chart, { top: 232, bottom: 272 });
  drawMarks(run, chart, 290);
  const cursor = svg("rect", { y: 14, height: 282, fill: "none", stroke: INK.ink, "stroke-width": 1.5 });
  chart.append(cursor);
  dragging(run, chart, onFrame);
  byId("timeline").replaceChildren(chart);
  byId("time-legend").replaceChildren(
    legendItem("prefill", swatch(INK.prefill)), legendItem("decode", swatch(INK.decode)),
    legendItem("used blocks", swatch(INK.used)), legendItem("prefix cache only", swatch(INK.cached)),
    legendItem("waiting", (picture) => picture.append(svg("line",
      { x1: 1, x2: 15, y1: 6, y2: 6, stroke: INK.waiting, "stroke-width": 2 }))),
    legendItem("preemption", mark(INK.preempt)),
    legendItem("eviction", swatch(INK.soft)));
  return (frame) => {
    cursor.setAttribute("x", xOf(run, frame) - 1);
    cursor.setAttribute("width", Math.max(3, xOf(run, 1) - xOf(run, 0) + 2));
  };
}

function mark(colour) {
  return (picture) => picture.append(svg("path", { d: "M2 1H14L8 11Z", fill: colour }));
}

function drawRows(run, chart, box) {
  const { prefill, decode } = run.columns, both = added(prefill, decode), none = prefill.map(() => 0);
  box.most = Math.max(1, largest(both));
  axis(chart, run.data.every === 1 ? "rows in the step" : `rows in ${run.data.every} steps`, box);
  chart.append(svg("path", { d: barPath(run, none, decode, box), fill: INK.decode }),
    svg("path", { d: barPath(run, decode, both, box), fill: INK.prefill }));
}

function drawMemory(run, chart, box) {
  const { used, cached } = run.columns, both = added(used, cached), none = used.map(() => 0);
  box.most = run.numBlocks;
  axis(chart, "KV blocks", box);
  chart.append(svg("path", { d: barPath(run, none, used, box), fill: INK.used }),
    svg("path", { d: barPath(run, used, both, box), fill: INK.cached }));
}

function drawQueue(run, chart, box) {
  const waiting = run.columns.waiting;
  box.most = Math.max(1, largest(waiting));
  axis(chart, "waiting requests", box);
  if (!run.length) return;
  chart.append(svg("path", { d: stepLine(run, waiting, box), fill: "none", stroke: INK.waiting,
    "stroke-width": 2 }));
}

function drawMarks(run, chart, y) {
  run.columns.preempted.forEach((number, frame) => {
    const x = (xOf(run, frame) + xOf(run, frame + 1)) / 2;
    if (number) chart.append(svg("path", { d: `M${x - 4} ${y - 7}H${x + 4}L${x} ${y}Z`, fill: INK.preempt }));
    if (run.columns.evicted[frame]) {
      chart.append(svg("rect", { x: x - 1.5, y: y + 3, width: 3, height: 6, fill: INK.soft }));
    }
  });
}

function dragging(run, chart, onFrame) {
  const go = (event) => run.length && onFrame(frameAt(run, chart, event));
  chart.addEventListener("pointerdown", (event) => {
    chart.setPointerCapture(event.pointerId);
    go(event);
  });
  chart.addEventListener("pointermove", (event) => {
    if (event.buttons) go(event);
  });
}
