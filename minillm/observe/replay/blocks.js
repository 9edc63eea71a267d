// The grid of KV blocks: the colour of a block is its owner's; a shared one has a stripe for each owner and a
// dark frame. Canvas, because a pool may have tens of thousands of blocks.

class Grid {
  constructor(run, onRequest) {
    this.run = run;
    this.canvas = byId("grid");
    this.owners = [];
    this.cursor = -1;
    this.followed = 0;
    this.canvas.addEventListener("mousemove", (event) => this.point(this.blockAt(event)));
    this.canvas.addEventListener("click", (event) => this.choose(this.blockAt(event), onRequest));
    this.canvas.addEventListener("keydown", (event) => this.key(event, onRequest));
    this.legend();
  }

  legend() {
    byId("blocks-legend").replaceChildren(
      legendItem("a request's, by colour and number", swatch(COLOURS[0])),
      legendItem("shared", (picture) => picture.append(
        svg("rect", { x: 1, y: 0.5, width: 7, height: 11, fill: COLOURS[0] }),
        svg("rect", { x: 8, y: 0.5, width: 7, height: 11, fill: COLOURS[1] }),
        svg("rect", { x: 1.5, y: 1, width: 13, height: 10, fill: "none", stroke: INK.ink,
          "stroke-width": 2 }))),
      legendItem("prefix cache only", (picture) => picture.append(
        svg("rect", { x: 1, y: 0.5, width: 14, height: 11, fill: "#FFF", stroke: INK.soft }),
        svg("path", { d: "M1 11L12 0M6 11.5L15 3", stroke: INK.soft }))),
      legendItem("public prefix", swatch(INK.ink)), legendItem("free", swatch(INK.free, INK.line)));
  }

  show(frame, followed) {
    this.owners = ownersOf(this.run.state(frame), this.run.numBlocks);
    this.followed = followed;
    this.draw();
    this.describe();
    const free = this.owners.filter((owners) => owners === null).length;
    const cached = this.owners.filter((owners) => owners === "cache").length;
    this.canvas.setAttribute("aria-label", `KV blocks: ${this.owners.length - free - cached} used, `
      + `${cached} in the prefix cache only, ${free} free`);
  }

  layout() {
    const width = this.canvas.parentElement.clientWidth, blocks = Math.max(1, this.owners.length);
    const size = Math.min(46, Math.max(3, Math.floor(Math.sqrt(width * 400 / blocks))));
    const across = Math.max(1, Math.floor(width / size));
    return { size, across, down: Math.ceil(blocks / across) };
  }

  draw() {
    const { size, across, down } = this.layout(), ratio = window.devicePixelRatio || 1;
    this.canvas.width = across * size * ratio;
    this.canvas.height = down * size * ratio;
    this.canvas.style.width = across * size + "px";
    this.canvas.style.height = down * size + "px";
    const paint = this.canvas.getContext("2d");
    paint.scale(ratio, ratio);
    this.owners.forEach((owners, block) => {
      const x = (block % across) * size, y = Math.floor(block / across) * size;
      this.drawBlock(paint, owners, { x, y, size: size > 5 ? size - 2 : size });
    });
    if (this.cursor >= 0) this.outline(paint, this.cursor, across, size);
  }

  drawBlock(paint, owners, box) {
    if (owners === null) fillBox(paint, box, INK.free, box.size > 5 ? INK.line : null);
    else if (owners === "cache") drawCached(paint, box);
    else this.drawOwned(paint, owners, box);
  }

  drawOwned(paint, owners, box) {
    const shown = owners.slice(0, 4), part = box.size / shown.length;
    shown.forEach(({ request }, i) => {
      paint.fillStyle = request === PUBLIC ? INK.ink : colourOf(request);
      paint.fillRect(box.x + i * part, box.y, part, box.size);
    });
    if (owners.length > 1 && box.size > 5) frameBox(paint, box, INK.ink, 2);
    if (box.size >= 20) this.label(paint, owners, box);
    if (owners.some(({ request }) => request === this.followed) && box.size > 5) {
      frameBox(paint, box, "#FFFFFF", 4);
      frameBox(paint, box, INK.ink, 2);
    }
  }

  label(paint, owners, box) {
    const { request } = owners[0], x = box.x + box.size / 2, y = box.y + box.size / 2;
    const isShared = owners.length > 1;
    paint.font = `${box.size >= 26 ? 12 : 10}px system-ui, "DejaVu Sans", sans-serif`;
    paint.textAlign = "center";
    paint.textBaseline = "middle";
    if (isShared) {
      paint.fillStyle = "#FFFFFF";
      paint.fillRect(x - 10, y - 7, 20, 14);
    }
    paint.fillStyle = isShared ? INK.ink : request === PUBLIC ? "#FFFFFF" : onColour(colourOf(request));
    const own = request === PUBLIC ? "P" : request < 0 ? "" : String(request + 1);
    paint.fillText(isShared ? "\u00d7" + owners.length : own, x, y + 1);
  }

  outline(paint, block, across, size) {
    const x = (block % across) * size, y = Math.floor(block / across) * size;
    paint.strokeStyle = "#0072B2";
    paint.lineWidth = 3;
    paint.strokeRect(x, y, size - 1, size - 1);
  }

  blockAt(event) {
    const { size, across } = this.layout(), box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / size);
    const block = Math.floor((event.clientY - box.top) / size) * across + column;
    return column < across && block < this.owners.length ? block : -1;
  }

  point(block) {
    if (block === this.cursor) return;
    this.cursor = block;
    this.draw();
    this.describe();
  }

  choose(block, onRequest) {
    const owners = this.owners[block];
    if (Array.isArray(owners) && owners[0].request >= 0) onRequest(owners[0].request);
  }

  key(event, onRequest) {
    const { across } = this.layout();
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across };
    if (event.key === "Enter") this.choose(this.cursor, onRequest);
    else if (event.key in moves) {
      const block = Math.max(0, this.cursor) + (this.cursor < 0 ? 0 : moves[event.key]);
      if (block >= 0 && block < this.owners.length) this.point(block);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  describe() {
    byId("block").textContent = this.cursor < 0 ? "Point at a block to see its owners."
      : `Block ${this.cursor}: ${ownersText(this.owners[this.cursor])}`;
  }
}

function ownersText(owners) {
  if (owners === null || owners === undefined) return "free";
  if (owners === "cache") return "only the prefix cache owns it; it can be found or evicted";
  return owners.map(({ request, sample, position }) => (request === PUBLIC ? "public prefix"
    : request === UNLISTED ? "a request that is not listed" : `${nameOf(request)} sample ${sample}`)
    + `, place ${position}`).join("; ");
}

function fillBox(paint, box, colour, border) {
  paint.fillStyle = colour;
  paint.fillRect(box.x, box.y, box.size, box.size);
  if (border) frameBox(paint, box, border, 1);
}

function frameBox(paint, box, colour, width) {
  paint.strokeStyle = colour;
  paint.lineWidth = width;
  paint.strokeRect(box.x + width / 2, box.y + width / 2, box.size - width, box.size - width);
}

function drawCached(paint, box) {
  fillBox(paint, box, box.size > 5 ? "#FFFFFF" : INK.cached, box.size > 5 ? INK.soft : null);
  if (box.size <= 5) return;
  paint.strokeStyle = INK.soft;
  paint.lineWidth = 1;
  paint.beginPath();
  for (let i = 6; i < 2 * box.size; i += 6) {
    paint.moveTo(box.x + Math.max(0, i - box.size), box.y + Math.min(i, box.size));
    paint.lineTo(box.x + Math.min(i, box.size), box.y + Math.max(0, i - box.size));
  }
  paint.stroke();
}
