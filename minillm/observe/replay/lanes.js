// The requests over the run: a lane for each, on the time axis of the charts above. And the life of one.

const MAX_LANES = 40, LANE = 15;

function drawLanes(run, followed, onRequest, onFrame) {
  const first = Math.max(0, Math.min(followed - MAX_LANES / 2, run.requests.length - MAX_LANES));
  const shown = run.requests.slice(first, first + MAX_LANES), height = shown.length * LANE + 8;
  const chart = svg("svg", { viewBox: `0 0 ${WIDE} ${height}`, role: "img",
    "aria-label": "When each request waited, ran, was preempted and ended" });
  shown.forEach((request, i) => drawLane(run, chart, first + i,
    { y: i * LANE + 4, isFollowed: first + i === followed, onRequest }));
  const cursor = svg("rect", { y: 0, height: height, fill: "none", stroke: INK.ink, "stroke-width": 1.5 });
  chart.append(cursor);
  dragging(run, chart, onFrame);
  byId("lanes").replaceChildren(chart);
  lanesLegend(run, shown.length);
  return (frame) => {
    cursor.setAttribute("x", xOf(run, frame) - 1);
    cursor.setAttribute("width", Math.max(3, xOf(run, 1) - xOf(run, 0) + 2));
  };
}

function lanesLegend(run, shown) {
  const items = [
    legendItem("waiting", (picture) => picture.append(svg("line", dashed(1, 15, 6)))),
    legendItem("prefill", swatch(INK.soft)),
    legendItem("its tokens", (picture) => picture.append(
      svg("rect", { x: 1, y: 3, width: 14, height: 6, fill: INK.soft }))),
    legendItem("preempted", mark(INK.preempt)), legendItem("end", endMark(8, 6)),
    element("span", {}, "A click on a name follows it.")];
  if (shown < run.requests.length) {
    items.push(element("span", {}, `${shown} of ${run.requests.length} requests, around the followed one`));
  }
  byId("lanes-legend").replaceChildren(...items);
}

function dashed(from, to, y) {
  return { x1: from, x2: to, y1: y, y2: y, stroke: INK.soft, "stroke-width": 1.5, "stroke-dasharray": "3 3" };
}

function endMark(x, y) {
  return (picture) => picture.append(svg("path", { d: `M${x} ${y - 5}V${y + 5}`, stroke: INK.ink,
    "stroke-width": 2.5 }));
}

function drawLane(run, chart, number, place) {
  const { y, isFollowed, onRequest } = place;
  const request = run.requests[number], middle = y + LANE / 2 - 1, colour = colourOf(number);
  if (isFollowed) chart.append(svg("rect", { x: 0, y: y - 1, width: WIDE, height: LANE, fill: "#E8EEF4" }));
  const name = svg("text", { x: LEFT - 6, y: middle + 4, "text-anchor": "end",
    class: isFollowed ? "name strong" : "name" }, nameOf(number));
  name.addEventListener("pointerdown", (event) => {
    event.stopPropagation();
    onRequest(number);
  });
  chart.append(name);
  for (const [from, to] of waits(run, request)) {
    chart.append(svg("line", dashed(xOf(run, from), xOf(run, to), middle)));
  }
  chart.append(svg("path", { d: tokensPath(run, request, middle), fill: colour }));
  for (const entry of request.life) drawEntry(run, chart, entry, middle, colour);
}

function drawEntry(run, chart, [frame, kind], y, colour) {
  const left = xOf(run, frame), width = Math.max(1.5, xOf(run, frame + 1) - left);
  if (kind === "chunk") {
    chart.append(svg("rect", { x: left, y: y - 6, width: width, height: 12, fill: colour }));
  } else if (kind === "preempt") {
    const corners = `M${left - 4} ${y - 5}H${left + 4}L${left} ${y + 3}Z`;
    chart.append(svg("path", { d: corners, fill: INK.preempt }));
  } else if (kind === "finish") endMark(left + width, y)(chart);
}

function tokensPath(run, request, y) {
  return request.tokens.map(([frame]) => {
    const left = xOf(run, frame).toFixed(2), right = xOf(run, frame + 1).toFixed(2);
    return `M${left} ${y - 3}V${y + 3}H${right}V${y - 3}Z`;
  }).join("");
}

// The spans of frames in which a request waited: before its admission and between preemption and resume.
function waits(run, request) {
  const found = [];
  let since = null;
  for (const [frame, kind] of request.life) {
    if (kind === "queue" || kind === "preempt") since = since === null ? frame : since;
    else if (since !== null && kind !== "finish") {
      found.push([since, frame]);
      since = null;
    }
  }
  if (since !== null) found.push([since, Math.min(run.length, endOf(request))]);
  return found;
}

// ---- one life ----

function fillFollow(run) {
  byId("follow").replaceChildren(...run.requests.map((request, number) => element("option", { value: number },
    `${nameOf(number)}: ${request.prompt_tokens} prompt tokens, ${request.output_tokens} generated`)));
}

function showRequest(run, number) {
  const request = run.requests[number];
  if (!request) return fillTable("request", []);
  fillTable("request", [
    ["Request", "name", nameOf(number)], ["Id", "id", request.id],
    ["Tenant (keyed)", "tenant", request.tenant || "-"],
    ["Prompt tokens", "prompt_tokens", count(request.prompt_tokens)],
    ["From the prefix cache", "cached_tokens", count(request.cached_tokens)],
    ["Samples", "samples", count(request.samples)],
    ["Tokens generated", "output_tokens", count(request.output_tokens)],
    ["Submitted at", "submitted", seconds(request.submitted)],
    ["In the queue", "queue", seconds(request.queue)],
    ["To the first token", "ttft", seconds(request.ttft)],
    ["Per token after it", "tpot", seconds(request.tpot)],
    ["To the end", "e2e", seconds(request.e2e)],
    ["Preemptions", "preemptions", count(request.preemptions)],
    ["Drafts accepted", "drafts", `${count(request.accepted)} of ${count(request.drafted)}`],
  ]);
}

const SAYS = {
  queue: (tokens) => `enters the queue with ${plural(tokens, "token")}`,
  admit: (cached) => `starts; ${plural(cached, "token")} from the prefix cache`,
  chunk: (start, end) => `computes tokens ${start} to ${end}`,
  preempt: (tokens) => `is preempted and loses ${plural(tokens, "computed token")}`,
  resume: (cached) => `runs again; ${plural(cached, "token")} from the prefix cache`,
  cancel: (reason) => `is ended: ${reason}`,
  finish: (index, reason) => `sample ${index} ends: ${reason}`,
};

// The entries of a life, with the runs of tokens between them.
function showLife(run, number, frame) {
  const request = run.requests[number];
  if (!request) return;
  const items = request.life.map(([at, kind, time, ...values]) => {
    const text = `Step ${run.at("step", at)}, ${seconds(time)} ${SAYS[kind](...values)}`;
    return element("li", { class: at === frame ? "now" : at > frame ? "later" : "" }, text);
  });
  if (request.left_out) items.push(element("li", {}, `${request.left_out} more are left out`));
  byId("life").replaceChildren(...items);
}
