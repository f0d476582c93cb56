// The page around the graphs: legend, lists, details, search.
"use strict";

const element = (name, attributes = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};

class ReportPage {
  constructor(data) {
    this.data = data;
    this.looks = data.looks;
    this.lit = null; // the items that an entry of a list lights up: [[graph, item]]
    this.looksLit = new Set();
    document.title = data.title;
    document.getElementById("title").textContent = data.title;
    document.getElementById("summary").textContent = data.summary || "";
    this.panes = data.graphs.map((graph, number) => new Pane(this, graph, number));
    const main = document.getElementById("panes");
    for (const pane of this.panes) main.append(pane.element);
    this.legend();
    this.lists();
    this.views();
    this.search();
    for (const pane of this.panes) {
      pane.render();
      pane.start();
    }
    this.details(null);
    document.documentElement.dataset.ready = "true";
  }

  // Give an element the colours of a look.
  paint(target, look) {
    const known = look === undefined ? undefined : this.looks[look];
    if (known === undefined) return;
    target.classList.add("painted");
    if (known.hue === undefined) target.classList.add("grey");
    else target.style.setProperty("--hue", known.hue);
    if (known.pale) target.classList.add("pale");
  }

  // --- legend ---

  legend() {
    const list = document.getElementById("legend");
    const used = this.panes.map((pane) => pane.shares.get(-1) || new Map());
    this.looks.forEach((look, number) => {
      const counts = used.map((shares) => shares.get(number) || 0);
      if (!counts.some(Boolean)) return;
      const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
      this.paint(swatch, number);
      const button = element("button", { type: "button", class: "look", "aria-pressed": "false", title: look.note || look.label }, swatch, element("span", { class: "grow" }, look.label), element("span", { class: "dim" }, counts.join(" → ")));
      button.addEventListener("click", () => {
        if (this.looksLit.has(number)) this.looksLit.delete(number);
        else this.looksLit.add(number);
        button.setAttribute("aria-pressed", String(this.looksLit.has(number)));
        this.light(null);
      });
      list.append(element("li", {}, button));
    });
  }

  // --- lists ---

  lists() {
    const side = document.getElementById("lists");
    for (const listing of this.data.listings) {
      side.append(element("h2", {}, listing.title));
      const list = element("ul", { class: "entries" });
      for (const entry of listing.entries) list.append(element("li", {}, this.entry(entry)));
      side.append(list);
    }
  }

  entry(entry) {
    const line = [element("span", { class: "grow" }, entry.title), element("span", { class: "dim" }, entry.note || "")];
    if (entry.look !== undefined) {
      const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
      this.paint(swatch, entry.look);
      line.unshift(swatch);
    }
    if (!entry.details) return element("div", { class: entry.dim ? "entry dim" : "entry" }, ...line);
    const body = element("div", { class: "body" });
    const opened = element("details", { class: entry.dim ? "entry dim" : "entry" }, element("summary", {}, ...line), body);
    opened.addEventListener("toggle", () => {
      if (opened.open && !body.childElementCount) body.append(...this.detailed(entry.details));
      if (opened.open) {
        for (const other of document.querySelectorAll("details.entry[open]")) if (other !== opened) other.open = false;
        this.light(entry.spots || []);
      } else if (!document.querySelector("details.entry[open]")) {
        this.light(null);
      }
    });
    return opened;
  }

  light(spots) {
    this.lit = spots === null || !spots.length ? null : spots;
    for (const pane of this.panes) pane.mark();
  }

  detailed(details) {
    return (details || []).map((detail) => {
      const lines = detail.lines.map((line) => {
        if (typeof line === "string") return element("div", { class: "line" }, line);
        const kind = line.code ? "line code" : "line";
        if (!line.spot) return element("div", { class: kind }, line.text);
        const link = element("button", { type: "button", class: `${kind} link` }, line.text);
        link.addEventListener("click", () => this.goTo(line.spot));
        return link;
      });
      const title = detail.title ? [element("h3", {}, detail.title)] : [];
      return element("div", { class: "detail" }, ...title, ...lines);
    });
  }

  // --- selection ---

  goTo([graph, number]) {
    const pane = this.panes[graph];
    this.ensureShown(pane);
    pane.reveal([number]);
    this.selected(pane, number, true);
    pane.show(number);
  }

  selected(pane, number, keep = false) {
    for (const each of this.panes) if (each !== pane) each.select(null);
    pane.select(number);
    if (number === null && !keep) {
      for (const open of document.querySelectorAll("details.entry[open]")) open.open = false;
      this.light(null);
    }
    this.details(number === null ? null : pane.graph.items[number], pane, number);
    if (number !== null) this.follow(pane, number);
  }

  // Light up, in the other graphs, what an item points to.
  follow(pane, number) {
    const item = pane.graph.items[number];
    const spots = [];
    for (const detail of item.details || []) for (const line of detail.lines) if (line.spot && line.spot[0] !== pane.number) spots.push(line.spot);
    for (const other of this.panes) {
      if (other === pane) continue;
      const theirs = spots.filter(([graph]) => graph === other.number);
      for (const [at, drawn] of other.drawn) drawn.classList.toggle("twin", theirs.some(([, each]) => other.visible(each) === at));
      if (theirs.length && !other.element.hidden) other.show(theirs[0][1], false);
    }
    for (const drawn of pane.drawn.values()) drawn.classList.remove("twin");
  }

  details(item, pane, number) {
    const panel = document.getElementById("details");
    if (item === null) {
      panel.replaceChildren(element("p", { class: "dim" }, "Click on an operation for its place, types, rewrites and remarks. Double-click, or click on its sign, to open or close a module."));
      return;
    }
    const heading = element("h2", {}, item.name || item.label);
    const children = [heading];
    if (item.place && item.kind !== "operation" && item.kind !== "region") children.push(element("p", { class: "dim" }, item.place));
    if (item.look !== undefined) {
      const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
      this.paint(swatch, item.look);
      children.push(element("p", { class: "lookline" }, swatch, this.looks[item.look].label));
    }
    if (item.kind === "module") children.push(this.inside(pane, number));
    children.push(...this.detailed(item.details));
    panel.replaceChildren(...children);
    document.getElementById("said").textContent = `${pane.graph.title}: ${item.name || item.label} ${item.place || ""}`;
  }

  // What is in a module, by look.
  inside(pane, number) {
    const counts = pane.shares.get(number) || new Map();
    const lines = [...counts].sort((a, b) => a[0] - b[0]).map(([look, count]) => {
      const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
      this.paint(swatch, look);
      return element("div", { class: "lookline" }, swatch, element("span", { class: "grow" }, this.looks[look].label.replace(/ \(\d+\)$/, "")), String(count));
    });
    return element("div", { class: "detail" }, element("h3", {}, "Operations in it"), ...lines);
  }

  // --- which graphs are shown ---

  views() {
    const bar = document.getElementById("views");
    if (this.panes.length < 2) return;
    const names = [...this.panes.map((pane) => pane.graph.title), "both"];
    names.forEach((name, number) => {
      const button = element("button", { type: "button", "aria-pressed": "false" }, name);
      button.addEventListener("click", () => this.view(number));
      bar.append(button);
    });
    this.view(window.innerWidth < 900 ? 1 : names.length - 1);
  }

  view(number) {
    this.panes.forEach((pane, each) => { pane.element.hidden = number < this.panes.length && each !== number; });
    [...document.getElementById("views").children].forEach((button, each) => button.setAttribute("aria-pressed", String(each === number)));
    for (const pane of this.panes) if (pane.placed && !pane.element.hidden) pane.start();
  }

  ensureShown(pane) {
    if (pane.element.hidden) this.view(pane.number);
  }

  // --- search ---

  search() {
    const field = document.getElementById("search");
    const note = document.getElementById("found");
    let hits = [];
    let at = -1;
    const look = () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      hits = [];
      at = -1;
      if (words.length) {
        for (const pane of this.panes) {
          pane.graph.items.forEach((item, number) => {
            const text = [item.label, item.place, item.name, item.look === undefined ? "" : this.looks[item.look].label, this.pathOf(pane, number)].join(" ").toLowerCase();
            if (words.every((word) => text.includes(word))) hits.push([pane.number, number]);
          });
        }
      }
      note.textContent = words.length ? `${hits.length} found` : "";
      this.light(hits);
    };
    const next = (step) => {
      if (!hits.length) return;
      at = (at + step + hits.length) % hits.length;
      note.textContent = `${at + 1} of ${hits.length}`;
      this.goTo(hits[at]);
    };
    field.addEventListener("input", look);
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter") next(event.shiftKey ? -1 : 1);
      if (event.key === "Escape") {
        field.value = "";
        look();
      }
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "/" && document.activeElement !== field) {
        event.preventDefault();
        field.focus();
      }
    });
  }

  pathOf(pane, number) {
    return Layout.ancestors(pane.graph.items, number).slice(1, -1).map((box) => pane.graph.items[box].name).join(" ");
  }
}

window.report = new ReportPage(JSON.parse(document.getElementById("data").textContent));
