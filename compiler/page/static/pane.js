// One graph, drawn as SVG: boxes that open and close, panning, zooming, selection by mouse and keyboard.
"use strict";

const svgElement = (name, attributes = {}, ...children) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
};

const measured = (() => {
  const context = document.createElement("canvas").getContext("2d");
  const fonts = ["600 12px system-ui, sans-serif", "11px system-ui, sans-serif"];
  const known = [new Map(), new Map()];
  return (text, isSmall) => {
    const cache = known[Number(isSmall)];
    if (!cache.has(text)) {
      context.font = fonts[Number(isSmall)];
      cache.set(text, context.measureText(text).width);
    }
    return cache.get(text);
  };
})();

// Cut a text to a width, in the middle, where paths differ least.
function cut(text, width, isSmall) {
  if (measured(text, isSmall) <= width) return text;
  const letters = [...text];
  let keep = Math.floor((letters.length * width) / measured(text, isSmall));
  for (; keep > 2; keep -= 1) {
    const tail = Math.floor((keep * 2) / 3);
    const short = `${letters.slice(0, keep - tail).join("")}…${letters.slice(letters.length - tail).join("")}`;
    if (measured(short, isSmall) <= width) return short;
  }
  return "…";
}

class Pane {
  // `page` has `looks`, and is told of selections: `page.selected(pane, number)`.
  constructor(page, graph, number) {
    this.page = page;
    this.graph = graph;
    this.number = number;
    this.model = Layout.prepare(graph);
    this.arrangement = new Layout.Arrangement(this.model, measured, dagre);
    this.open = Layout.firstOpen(this.model, 60);
    this.selection = null;
    this.scale = 1;
    this.origin = [0, 0];
    this.shares = this.countLooks();
    this.build();
  }

  build() {
    const { graph } = this;
    this.world = svgElement("g", { class: "world" });
    this.svg = svgElement("svg", {
      role: "tree",
      tabindex: "0",
      "aria-label": `graph ${graph.title}; arrow keys go from operation to operation, Enter opens and closes a module`,
    });
    const marker = svgElement("marker", { id: `arrow${this.number}`, viewBox: "0 0 8 8", refX: "7", refY: "4", markerWidth: "6", markerHeight: "6", orient: "auto" }, svgElement("path", { d: "M0 0L8 4L0 8z", class: "arrow" }));
    this.svg.append(svgElement("defs", {}, marker), this.world);
    this.element = document.createElement("section");
    this.element.className = "pane";
    const bar = document.createElement("div");
    bar.className = "panebar";
    const title = document.createElement("h2");
    title.textContent = graph.title;
    const note = document.createElement("span");
    note.className = "dim";
    const operations = graph.items.filter((item, i) => (item.kind === "operation" && !this.isPart(i)) || item.kind === "region");
    note.textContent = `${operations.length} operations`;
    bar.append(
      title,
      note,
      this.button("open all", "Open all modules and regions", () => this.openAll(true)),
      this.button("close all", "Close all modules", () => this.openAll(false)),
      this.button("fit", "Show the whole graph", () => this.fit()),
      this.button("−", "Zoom out", () => this.zoom(1 / 1.3)),
      this.button("+", "Zoom in", () => this.zoom(1.3)),
    );
    this.element.append(bar, this.svg);
    this.listen();
  }

  button(text, title, action) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.title = title;
    button.setAttribute("aria-label", `${title} (${this.graph.title})`);
    button.addEventListener("click", action);
    return button;
  }

  isPart(number) {
    const parent = this.graph.items[number].parent;
    return parent >= 0 && this.graph.items[parent].kind === "region";
  }

  // How often each look occurs in each box.
  countLooks() {
    const shares = new Map();
    const { items } = this.graph;
    items.forEach((item, number) => {
      if (item.kind !== "operation" || item.look === undefined || this.isPart(number)) {
        if (item.kind !== "region") return;
      }
      for (const box of Layout.ancestors(items, item.parent)) {
        if (!shares.has(box)) shares.set(box, new Map());
        const counts = shares.get(box);
        counts.set(item.look, (counts.get(item.look) || 0) + 1);
      }
    });
    return shares;
  }

  // --- drawing ---

  render() {
    this.placed = this.arrangement.place(this.open);
    this.drawn = new Map();
    this.lines = [];
    const boxes = svgElement("g");
    const heads = svgElement("g"); // over the paths that go through them
    const paths = svgElement("g", { class: "paths" });
    const nodes = svgElement("g");
    for (const [number, spot] of [...this.placed.items].sort((a, b) => a[0] - b[0])) {
      const element = spot.open ? this.box(number, spot) : this.node(number, spot);
      (spot.open ? boxes : nodes).append(element);
      if (spot.open) heads.append(this.head(number, spot));
      this.drawn.set(number, element);
    }
    for (const path of this.placed.paths) {
      const line = svgElement("path", { d: Layout.svgPath(path.points), class: path.far ? "path far" : "path" });
      if (path.to !== "out") line.setAttribute("marker-end", `url(#arrow${this.number})`);
      const types = [...new Set(path.edges.map((edge) => this.graph.types[this.graph.edges[edge][2]]))];
      line.append(svgElement("title", {}, types.slice(0, 6).join("\n")));
      paths.append(line);
      if (path.far) paths.append(this.text(path.points[0][0] + 4, path.points[0][1] + 6, cut(this.graph.items[path.source].label, 70, true), "place left"));
      this.lines.push([path, line]);
    }
    this.world.replaceChildren(boxes, paths, heads, nodes);
    this.mark();
  }

  group(number, kind) {
    const item = this.graph.items[number];
    const element = svgElement("g", { id: this.idOf(number), class: `item ${kind} ${item.kind}`, role: "treeitem", "data-number": number });
    element.setAttribute("aria-label", [item.label, item.name, item.place].filter(Boolean).join(", "));
    element.setAttribute("aria-level", Layout.ancestors(this.graph.items, number).length - 1);
    if (this.model.children.has(number)) element.setAttribute("aria-expanded", String(kind === "box"));
    this.page.paint(element, item.look);
    return element;
  }

  idOf(number) {
    return `g${this.number}i${number}`;
  }

  text(x, y, text, kind) {
    return svgElement("text", { x, y, class: kind }, text);
  }

  toggle(x, y, sign) {
    const element = svgElement("g", { class: "toggle", transform: `translate(${x} ${y})` }, svgElement("rect", { x: -7, y: -7, width: 14, height: 14, rx: 3 }), svgElement("path", { d: sign === "+" ? "M-4 0H4M0 -4V4" : "M-4 0H4" }));
    return element;
  }

  node(number, { x, y, width, height }) {
    const item = this.graph.items[number];
    const element = this.group(number, "node");
    const isBox = this.model.children.has(number);
    const round = { input: 13, output: 13, module: 3, region: 6 }[item.kind] ?? 6;
    element.append(svgElement("title", {}, [item.name || item.label, item.place].filter(Boolean).join("\n")));
    element.append(svgElement("rect", { x, y, width, height, rx: round, class: "body" }));
    const inset = isBox ? 22 : 0;
    const room = width - 14 - inset;
    const center = x + inset / 2 + width / 2;
    const bar = item.kind === "module" ? 7 : 0;
    const second = this.arrangement.second(number);
    element.append(this.text(center, y + (second ? 16 : (height - bar) / 2 + 4), cut(item.label, room, false), "label"));
    if (second) element.append(this.text(center, y + 30, cut(second, room, true), "place"));
    if (item.kind === "module") element.append(...this.share(number, x, y + height - 7, width));
    if (isBox) element.append(this.toggle(x + 14, y + (height - bar) / 2, "+"));
    return element;
  }

  // A bar with the colours of what is inside.
  share(number, x, y, width) {
    const counts = this.shares.get(number) || new Map();
    const whole = [...counts.values()].reduce((a, b) => a + b, 0);
    let at = x + 3;
    return [...counts].sort((a, b) => a[0] - b[0]).map(([look, count]) => {
      const part = ((width - 6) * count) / whole;
      const element = svgElement("rect", { x: at, y, width: part, height: 4, class: "share" });
      this.page.paint(element, look);
      at += part;
      return element;
    });
  }

  box(number, { x, y, width, height }) {
    const item = this.graph.items[number];
    const element = this.group(number, "box");
    element.append(svgElement("title", {}, item.name || item.label));
    element.append(svgElement("rect", { x, y, width, height, rx: 7, class: "body" }));
    return element;
  }

  head(number, { x, y, width }) {
    const item = this.graph.items[number];
    const element = svgElement("g", { class: "item head", "data-number": number });
    element.append(this.toggle(x + 14, y + 14, "−"), this.text(x + 27, y + 18, cut(item.label, width - 40, false), "label left"));
    const used = measured(item.label, false) + 36;
    if (item.place && width - used > 40) element.append(this.text(x + used, y + 18, cut(item.place, width - used - 10, true), "place left"));
    return element;
  }

  // --- what is marked ---

  mark() {
    const { lit, looksLit } = this.page;
    const own = lit === null ? null : new Set(lit.filter(([graph]) => graph === this.number).map(([, number]) => this.visible(number)));
    const around = new Set();
    if (own !== null) for (const number of own) for (const each of Layout.ancestors(this.graph.items, number)) around.add(each);
    for (const [number, element] of this.drawn) {
      const item = this.graph.items[number];
      let dim = false;
      if (own !== null) dim = !around.has(number) && !Layout.ancestors(this.graph.items, number).some((each) => own.has(each));
      else if (looksLit.size) dim = !this.hasLook(number, item, looksLit);
      element.classList.toggle("dimmed", dim);
      element.classList.toggle("lit", own !== null && own.has(number));
      const isSelected = number === this.selection;
      element.classList.toggle("selected", isSelected);
      element.setAttribute("aria-selected", String(isSelected));
    }
    const at = this.selection === null ? null : this.visible(this.selection);
    for (const [path, line] of this.lines) {
      line.classList.toggle("near", at !== null && this.touches(path, at));
    }
    if (at !== null) this.svg.setAttribute("aria-activedescendant", this.idOf(at));
    else this.svg.removeAttribute("aria-activedescendant");
  }

  touches(path, at) {
    return path.edges.some((edge) => {
      const [source, target] = this.graph.edges[edge];
      return this.visible(source) === at || this.visible(target) === at || (this.open.has(at) && (path.from === at || path.to === at));
    });
  }

  hasLook(number, item, looks) {
    if (item.look !== undefined) return looks.has(item.look);
    const counts = this.shares.get(number);
    return counts !== undefined && [...counts.keys()].some((look) => looks.has(look));
  }

  // The item itself, or the outermost closed box that it is in.
  visible(number) {
    const chain = Layout.ancestors(this.graph.items, number);
    let found = number;
    for (const each of chain.slice(1)) if (each !== -1 && !this.open.has(each)) found = each;
    return found;
  }

  select(number) {
    this.selection = number;
    if (this.drawn) this.mark();
  }

  // --- opening ---

  flip(number) {
    if (!this.model.children.has(number)) return;
    const before = this.placed.items.get(number);
    if (this.open.has(number)) this.open.delete(number);
    else this.open.add(number);
    this.arrangement.toggled(number);
    this.render();
    const after = this.placed.items.get(number);
    if (before && after) {
      // what was clicked on stays where it is
      this.origin[0] += (before.x - after.x) * this.scale;
      this.origin[1] += (before.y - after.y) * this.scale;
      this.move();
    }
  }

  openAll(all) {
    this.open = new Set(all ? this.model.children.keys() : []);
    this.open.delete(-1);
    this.arrangement.boxes.clear();
    this.render();
    this.start();
    if (this.selection !== null) this.show(this.selection);
  }

  // Open the boxes around items.
  reveal(numbers) {
    let changed = false;
    for (const number of numbers) {
      for (const box of Layout.ancestors(this.graph.items, number).slice(1)) {
        if (box === -1 || this.open.has(box)) continue;
        this.open.add(box);
        this.arrangement.toggled(box);
        changed = true;
      }
    }
    if (changed) this.render();
  }

  // --- panning and zooming ---

  move() {
    const [x, y] = this.origin;
    this.world.setAttribute("transform", `translate(${x} ${y}) scale(${this.scale})`);
    this.svg.classList.toggle("tiny", this.scale < 0.35);
  }

  size() {
    const { width, height } = this.svg.getBoundingClientRect();
    return [Math.max(width, 50), Math.max(height, 50)];
  }

  fit() {
    const [width, height] = this.size();
    const whole = Math.min((width - 20) / this.placed.width, (height - 20) / this.placed.height);
    this.scale = Math.min(1.2, whole);
    this.origin = [(width - this.placed.width * this.scale) / 2, Math.max(10, (height - this.placed.height * this.scale) / 2)];
    this.move();
  }

  // Show the beginning at a size that can be read.
  start() {
    const [width] = this.size();
    this.scale = Math.max(0.55, Math.min(1, (width - 20) / this.placed.width));
    const first = Math.min(...this.placed.items.keys());
    const spot = this.placed.items.get(first);
    const wide = this.placed.width * this.scale;
    const x = wide <= width || !spot ? (width - wide) / 2 : width / 2 - (spot.x + spot.width / 2) * this.scale;
    this.origin = [x, 10];
    this.move();
  }

  zoom(factor, at = null) {
    const [width, height] = this.size();
    const [x, y] = at || [width / 2, height / 2];
    const scale = Math.max(0.02, Math.min(4, this.scale * factor));
    this.origin = [x - ((x - this.origin[0]) * scale) / this.scale, y - ((y - this.origin[1]) * scale) / this.scale];
    this.scale = scale;
    this.move();
  }

  show(number, always = true) {
    const spot = this.placed.items.get(this.visible(number));
    if (!spot) return;
    const [width, height] = this.size();
    if (this.scale < 0.5) this.scale = 0.8;
    const [x, y] = [this.origin[0] + (spot.x + spot.width / 2) * this.scale, this.origin[1] + (spot.y + Math.min(spot.height, 80) / 2) * this.scale];
    const inView = x > 60 && x < width - 60 && y > 40 && y < height - 40;
    if (inView && !always) return;
    this.origin = [width / 2 - (spot.x + spot.width / 2) * this.scale, height / 2 - (spot.y + Math.min(spot.height, 80) / 2) * this.scale];
    this.move();
  }

  // --- mouse and keyboard ---

  listen() {
    const { svg } = this;
    let drag = null;
    svg.addEventListener("pointerdown", (event) => {
      if (event.button === 0) drag = { x: event.clientX, y: event.clientY, origin: [...this.origin], moved: false };
    });
    svg.addEventListener("pointermove", (event) => {
      if (drag === null) return;
      const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
      if (!drag.moved && Math.hypot(dx, dy) < 4) return;
      if (!drag.moved) svg.setPointerCapture(event.pointerId);
      drag.moved = true;
      this.origin = [drag.origin[0] + dx, drag.origin[1] + dy];
      this.move();
    });
    svg.addEventListener("pointerup", (event) => {
      const moved = drag !== null && drag.moved;
      drag = null;
      if (moved) return;
      const item = event.target.closest(".item");
      const number = item === null ? null : Number(item.dataset.number);
      if (event.target.closest(".toggle")) this.flip(number);
      else this.page.selected(this, number);
    });
    svg.addEventListener("pointercancel", () => { drag = null; });
    svg.addEventListener("dblclick", (event) => {
      const item = event.target.closest(".item");
      if (item !== null && !event.target.closest(".toggle")) this.flip(Number(item.dataset.number));
    });
    svg.addEventListener("wheel", (event) => {
      event.preventDefault();
      const { left, top } = svg.getBoundingClientRect();
      this.zoom(Math.exp(-event.deltaY * (event.deltaMode === 1 ? 0.05 : 0.0015)), [event.clientX - left, event.clientY - top]);
    }, { passive: false });
    svg.addEventListener("keydown", (event) => this.pressed(event));
  }

  pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const actions = {
      "+": () => this.zoom(1.3),
      "-": () => this.zoom(1 / 1.3),
      0: () => this.fit(),
      Enter: () => this.selection !== null && this.flip(this.visible(this.selection)),
      " ": () => this.selection !== null && this.flip(this.visible(this.selection)),
      Escape: () => this.page.selected(this, null),
      ArrowUp: () => this.go(this.along(-1)),
      ArrowDown: () => this.go(this.along(1)),
      ArrowLeft: () => this.go(this.beside(-1)),
      ArrowRight: () => this.go(this.beside(1)),
    };
    const action = actions[event.key];
    if (action === undefined) return;
    event.preventDefault();
    action();
  }

  go(number) {
    if (number === undefined) return;
    this.page.selected(this, number);
    this.show(number, false);
  }

  // What makes, or reads, what is selected.
  along(direction) {
    if (this.selection === null) return this.beside(direction);
    const at = this.visible(this.selection);
    for (const [source, target] of this.graph.edges) {
      const [from, to] = [this.visible(source), this.visible(target)];
      if (from === to) continue;
      if (direction > 0 && from === at) return to;
      if (direction < 0 && to === at) return from;
    }
    return undefined;
  }

  // The item drawn before, or after, in the order of the program.
  beside(direction) {
    const order = [...this.drawn.keys()].sort((a, b) => a - b);
    const at = this.selection === null ? (direction > 0 ? -1 : order.length) : order.indexOf(this.visible(this.selection));
    return order[at + direction];
  }
}
