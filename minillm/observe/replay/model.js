// The run, and who owns which block after a frame. Tables are stored as changes. Before every KEEP-th frame
// the whole state is kept, so going to any frame applies at most KEEP changes.

const KEEP = 100;
const MAX_DRAWN = 65536;
const PUBLIC = -1, UNLISTED = -2;

class Run {
  constructor(data) {
    this.data = data;
    this.columns = data.columns;
    this.requests = data.requests;
    this.length = data.columns.step.length;
    this.numBlocks = data.run.num_blocks;
    this.kept = [{ tables: new Map(), cached: new Set() }];
    this.ends = this.requests.map(endOf);
    this.chunks = this.chunksByFrame();
    this.tokens = this.tokensByFrame();
  }

  at(name, frame) {
    return this.columns[name][frame];
  }

  chunksByFrame() {
    const found = Array.from({ length: this.length }, () => []);
    this.requests.forEach((request, number) => {
      for (const [frame, kind, , start, end] of request.life) {
        if (kind === "chunk") found[frame].push({ request: number, start, end });
      }
    });
    return found;
  }

  tokensByFrame() {
    const found = Array.from({ length: this.length }, () => []);
    this.requests.forEach((request, number) => {
      for (const [frame, tokens] of request.tokens) found[frame].push({ request: number, tokens });
    });
    return found;
  }

  // The tables after `frame`: key -> { request, sample, ids }, and the blocks that only the cache owns.
  state(frame) {
    for (let next = this.kept.length; next * KEEP <= frame; next++) {
      this.kept.push(this.advanced(this.kept[next - 1], (next - 1) * KEEP, next * KEEP));
    }
    const nearest = Math.floor(frame / KEEP);
    return this.advanced(this.kept[nearest], nearest * KEEP, frame + 1);
  }

  // The state before frame `from`, with the changes of the frames up to `to` (exclusive).
  advanced(state, from, to) {
    const tables = new Map(state.tables), cached = new Set(state.cached);
    for (let frame = from; frame < to; frame++) this.apply(this.data.tables[frame], tables, cached);
    return { tables, cached };
  }

  apply(changes, tables, cached) {
    for (const [request, sample, keep, ids] of changes.t) {
      const key = request + " " + sample, old = tables.get(key);
      const whole = (old ? old.ids.slice(0, keep) : []).concat(ids);
      if (whole.length) tables.set(key, { request, sample, ids: whole });
      else tables.delete(key);
    }
    for (const block of changes.c) cached.add(block);
    for (const block of changes.u) cached.delete(block);
  }

  // What a request is doing at the end of a frame: "later", "waiting", "running", "preempted" or "ended".
  doing(number, frame) {
    let now = "later";
    for (const entry of this.requests[number].life) {
      if (entry[0] > frame) break;
      now = DOING[entry[1]] || now;
    }
    return this.ends[number] <= frame ? "ended" : now;
  }
}

const DOING = { queue: "waiting", admit: "running", chunk: "running", resume: "running",
  preempt: "preempted" };

// The frame in which the last sample of a request ended; Infinity if it did not.
function endOf(request) {
  const ends = request.life.filter((entry) => entry[1] === "finish");
  return ends.length >= request.samples && ends.length ? ends[ends.length - 1][0] : Infinity;
}

// For each block its owners; null: free; "cache": only the prefix cache owns it.
function ownersOf(state, numBlocks) {
  const owners = new Array(Math.min(numBlocks, MAX_DRAWN)).fill(null);
  for (const { request, sample, ids } of state.tables.values()) {
    ids.forEach((block, position) => {
      if (block < owners.length) (owners[block] = owners[block] || []).push({ request, sample, position });
    });
  }
  for (const block of state.cached) if (block < owners.length) owners[block] = "cache";
  return owners;
}
