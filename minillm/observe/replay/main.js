// The state of the page: a frame and a followed request, also in the address (#step=12&request=3).

const run = new Run(JSON.parse(byId("data").textContent));
const state = { frame: 0, request: 0, timer: null };
const grid = new Grid(run, follow);
let moveTimeline = () => {}, moveLanes = () => {};

function goTo(frame) {
  state.frame = Math.max(0, Math.min(run.length - 1, frame));
  byId("slider").value = state.frame;
  if (run.length) {
    grid.show(state.frame, state.request);
    moveTimeline(state.frame);
    moveLanes(state.frame);
  }
  showPosition(run, state.frame);
  showFacts(run, state.frame);
  showBatch(run, state.frame);
  showLife(run, state.request, state.frame);
}

function follow(number) {
  state.request = Math.max(0, Math.min(run.requests.length - 1, number));
  byId("follow").value = state.request;
  moveLanes = drawLanes(run, state.request, follow, goTo);
  showRequest(run, state.request);
  goTo(state.frame);
}

function drawCharts() {
  measureWidth();
  moveTimeline = drawTimeline(run, goTo);
  follow(state.request);
}

function play(isOn) {
  clearInterval(state.timer);
  state.timer = isOn ? setInterval(tick, 1000 / Number(byId("speed").value)) : null;
  byId("play").textContent = isOn ? "Pause" : "Play";
}

function tick() {
  if (state.frame >= run.length - 1) play(false);
  else goTo(state.frame + 1);
}

function togglePlay() {
  if (state.timer === null && state.frame >= run.length - 1) goTo(0);
  play(state.timer === null);
}

function onKey(event) {
  if (event.target.matches("select, input, button") && event.key !== "Escape") return;
  const far = event.shiftKey ? 10 : 1;
  const actions = { " ": togglePlay, ArrowLeft: () => goTo(state.frame - far),
    ArrowRight: () => goTo(state.frame + far), Home: () => goTo(0), End: () => goTo(run.length - 1) };
  if (!(event.key in actions) || event.ctrlKey || event.altKey || event.metaKey) return;
  actions[event.key]();
  event.preventDefault();
}

// The first frame whose last step is not before `step`.
function frameOf(step) {
  const found = run.columns.step.findIndex((last) => last >= step);
  return found < 0 ? run.length - 1 : found;
}

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const number = Number(given.get("request")), step = Number(given.get("step"));
  state.frame = given.has("step") && Number.isFinite(step) ? frameOf(step) : 0;
  follow(given.has("request") && Number.isInteger(number) ? number - 1 : 0);
}

function connect() {
  const clicks = { first: () => goTo(0), back: () => goTo(state.frame - 1), play: togglePlay,
    next: () => goTo(state.frame + 1), last: () => goTo(run.length - 1) };
  for (const [id, action] of Object.entries(clicks)) byId(id).addEventListener("click", action);
  byId("slider").max = Math.max(0, run.length - 1);
  byId("slider").addEventListener("input", (event) => goTo(Number(event.target.value)));
  byId("follow").addEventListener("change", (event) => follow(Number(event.target.value)));
  byId("speed").addEventListener("change", () => play(state.timer !== null));
  document.addEventListener("keydown", onKey);
  window.addEventListener("hashchange", readAddress);
  window.addEventListener("resize", drawCharts);
}

showAbout(run);
showSummary(run);
showDrafts(run);
fillFollow(run);
connect();
drawCharts();
readAddress();
document.documentElement.dataset.ready = "yes";
