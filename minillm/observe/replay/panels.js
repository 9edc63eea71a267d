// What one frame holds, as tables and bars; and the numbers of the whole run.

function showAbout(run) {
  const { run: header, summary } = run.data, model = header.model;
  byId("about").textContent = `${plural(run.data.steps, "step")}, ${plural(summary.requests, "request")}. `
    + `${plural(header.num_blocks, "KV block")} of ${plural(header.block_size, "token")}. `
    + `A model of ${plural(model.num_hidden_layers, "layer")}, hidden size ${count(model.hidden_size)}, `
    + `${plural(model.parameters, "parameter")} in ${model.dtype}, on ${header.device} (${header.backend}).`;
  byId("notes").textContent = notes(run).join(" ");
  const { every } = run.data;
  if (every > 1) {
    byId("h-step").textContent = `These ${every} steps`;
    byId("h-batch").textContent = `The batches of these ${every} steps`;
    byId("h-blocks").textContent = "KV blocks after these steps";
  }
}

function notes(run) {
  const { every, is_cut: isCut, summary } = run.data, found = [];
  if (every > 1) {
    found.push(`A long run: each position stands for ${every} steps. Amounts are sums over them; `
      + "waiting requests and blocks are those at the last.");
  }
  if (isCut) found.push("The last line of the file was cut: the process ended while it wrote.");
  if (run.requests.length < summary.requests) {
    found.push(`The first ${count(run.requests.length)} of ${count(summary.requests)} requests are listed.`);
  }
  if (run.numBlocks > MAX_DRAWN) found.push(`The first ${count(MAX_DRAWN)} blocks are drawn.`);
  if (!run.length) found.push("The run has no step.");
  return found;
}

function stepName(run, frame) {
  const first = run.at("first", frame), last = run.at("step", frame);
  return first === last ? `step ${last}` : `steps ${first} to ${last}`;
}

function showPosition(run, frame) {
  if (!run.length) return;
  byId("position").textContent = `${stepName(run, frame)} of ${run.at("step", run.length - 1)}, `
    + `at ${seconds(run.at("time", frame))}`;
}

function showFacts(run, frame) {
  if (!run.length) return;
  const value = (name) => count(run.at(name, frame));
  fillTable("facts", [
    ["Prefill tokens", "prefill", value("prefill")], ["Sequences in decode", "decode", value("decode")],
    ["Tokens generated", "output", value("output")],
    ["Time of the step", "seconds", seconds(run.at("seconds", frame))],
    ["of them", "phases", named(run.columns.phases, frame, seconds)],
    ["Running sequences", "running", value("running")], ["Waiting requests", "waiting", value("waiting")],
    ["held by lack of", "held", named(run.columns.held, frame, count)],
    ["Prefix hits, tokens", "hits", value("hits")], ["Preempted", "preempted", value("preempted")],
    ["Blocks used", "used", value("used")], ["Blocks in the prefix cache only", "cached", value("cached")],
    ["Blocks free", "free", value("free")], ["Blocks evicted", "evicted", value("evicted")],
    ["Slots without a token", "waste", `${value("waste")} of ${value("slots")}`],
    ["Drafts accepted", "drafts", `${value("accepted")} of ${value("drafted")}`],
  ]);
}

function named(columns, frame, format) {
  const found = Object.entries(columns).filter(([, values]) => values[frame]);
  return found.map(([name, values]) => `${name} ${format(values[frame])}`).join(", ") || "-";
}

// ---- the batch ----

function showBatch(run, frame) {
  if (!run.length) return;
  const chunks = run.chunks[frame].map(({ request, start, end }) => (
    { request, size: end - start, text: `${nameOf(request)} ${start}-${end}` }));
  const tokens = run.tokens[frame].map(({ request, tokens: size }) => (
    { request, size, text: nameOf(request) }));
  byId("batch").replaceChildren(
    what(`Prefill: ${plural(run.at("prefill", frame), "token")}, in chunks`),
    bar(chunks, run.at("prefill", frame)),
    what(`Tokens generated: ${count(run.at("output", frame))}`),
    bar(tokens, run.at("output", frame)),
    what(`Waiting at the end of the step: ${plural(run.at("waiting", frame), "request")}`),
    chips(run, frame));
}

function what(text) {
  return element("p", { class: "what" }, text);
}

// A bar of parts; what is missing to `total` belongs to requests that are not listed.
function bar(parts, total) {
  const rest = { request: UNLISTED, size: total - sum(parts.map(({ size }) => size)), text: "not listed" };
  const spans = (rest.size > 0 ? [...parts, rest] : parts).map(({ request, size, text }) => {
    const background = colourOf(request), color = onColour(background);
    return element("span", { title: `${text}: ${size}`,
      style: { flexGrow: size, flexBasis: "0", background, color } }, text);
  });
  return element("div", { class: "bar" }, ...spans);
}

function chips(run, frame) {
  const found = [];
  run.requests.forEach((request, number) => {
    const doing = run.doing(number, frame);
    if (doing === "waiting") found.push(element("span", { class: "chip" }, `${nameOf(number)} waits`));
    if (doing === "preempted") found.push(element("span", { class: "chip" }, `${nameOf(number)} preempted`));
  });
  const more = found.length - 60;
  return element("div", { class: "chips" }, ...found.slice(0, 60), ...(more > 0 ? [`and ${more} more`] : []));
}

// ---- the run ----

function showSummary(run) {
  const s = run.data.summary, times = (values) => (values ? values.map(seconds).join(", ") : "-");
  fillTable("summary", [
    ["Requests", "requests", count(s.requests)], ["Refused", "refused", count(s.refused)],
    ["Prompt tokens admitted", "prompt_tokens", count(s.prompt_tokens)],
    ["of them from the prefix cache", "cached_tokens",
      `${count(s.cached_tokens)} (${share(s.cached_tokens, s.prompt_tokens)})`],
    ["Tokens prefilled", "prefill_tokens", count(s.prefill_tokens)],
    ["Tokens generated", "output_tokens", count(s.output_tokens)],
    ["Preemptions", "preemptions", count(s.preemptions)],
    ["Blocks evicted", "evicted_blocks", count(s.evicted_blocks)],
    ["Most blocks used", "peak_used_blocks", `${count(s.peak_used_blocks)} of ${count(run.numBlocks)}`],
    ["To the first token: p50, p90, p99", "ttft", times(s.ttft)],
    ["Between tokens: p50, p90, p99", "itl", times(s.itl)],
  ]);
}

function showDrafts(run) {
  const s = run.data.summary;
  byId("drafts").hidden = !s.drafted;
  const rows = s.drafted_at.map((drafted, i) => [`Position ${i + 1}`, `at-${i + 1}`,
    `${share(s.accepted_at[i], drafted)}: ${count(s.accepted_at[i])} of ${count(drafted)}`]);
  fillTable("acceptance", [...rows, ["All", "all",
    `${share(s.accepted, s.drafted)}: ${count(s.accepted)} of ${count(s.drafted)}`]]);
}
