// Where things stand: boxes in boxes, each laid out alone from its parts up, so that opening one moves only what is
// around it. There is nothing of a browser here; sizes of texts come from `measure(text, isSmall)`.
//
// A graph is `{items: [{kind, parent, label, place}], edges: [[source, target, type]]}`, as the page has it. Item -1 is the
// whole graph.
"use strict";

const Layout = (() => {
  const PAD = 14;
  const HEAD = 26;
  const NODE = 26;
  const TALL = 40;
  const BAR = 7;
  const WIDEST = 260;
  const RANK_GAP = 30;
  const NODE_GAP = 18;
  const SIMPLEX_LIMIT = 60; // more nodes than these get the ranker that takes linear time
  const FAR = 24; // an edge over more ranks than these is not routed between the nodes it passes
  const MANY = 3; // of a value with more readers than these beyond CLOSE ranks, only the close ones are
  const CLOSE = 4;
  const ROOF = "in";
  const FLOOR = "out";

  // What does not depend on which boxes are open.
  function prepare(graph) {
    const { items, edges } = graph;
    const children = new Map([[-1, []]]);
    items.forEach((item, number) => {
      if (item.kind === "module" || item.kind === "region") children.set(number, []);
      children.get(item.parent).push(number);
    });
    const links = new Map([...children.keys()].map((box) => [box, []]));
    edges.forEach(([source, target], number) => {
      const above = ancestors(items, source);
      const below = ancestors(items, target);
      let common = 1; // the last of both is the whole graph
      while (above[above.length - 1 - common] === below[below.length - 1 - common]) common += 1;
      const box = above[above.length - common];
      const [from, to] = [above[above.length - 1 - common], below[below.length - 1 - common]];
      links.get(box).push({ from, to, source, target, edge: number });
      for (let i = 1; i < above.length - common; i += 1) {
        links.get(above[i]).push({ from: above[i - 1], to: FLOOR, source, target, edge: number });
      }
      for (let i = 1; i < below.length - common; i += 1) {
        links.get(below[i]).push({ from: ROOF, to: below[i - 1], source, target, edge: number });
      }
    });
    const sizes = new Map(); // how many operations are in each box
    for (let number = items.length - 1; number >= 0; number -= 1) {
      const own = children.has(number) ? sizes.get(number) || 0 : 1;
      sizes.set(number, own);
      sizes.set(items[number].parent, (sizes.get(items[number].parent) || 0) + own);
    }
    return { items, edges, children, links, sizes };
  }

  // The item and the boxes around it, up to the whole graph.
  function ancestors(items, number) {
    const found = [number];
    while (number !== -1) {
      number = items[number].parent;
      found.push(number);
    }
    return found;
  }

  // The boxes that are open at first: from the outside in, as long as not too much is shown.
  function firstOpen(model, most) {
    const open = new Set();
    let shown = model.children.get(-1).length;
    let level = model.children.get(-1);
    while (level.length) {
      const next = [];
      for (const box of level) {
        const inside = model.children.get(box);
        if (!inside || model.items[box].kind === "region" || shown + inside.length > most) continue;
        open.add(box);
        shown += inside.length;
        next.push(...inside);
      }
      level = next;
    }
    return open;
  }

  class Arrangement {
    constructor(model, measure, dagre) {
      this.model = model;
      this.measure = measure;
      this.dagre = dagre;
      this.boxes = new Map(); // box -> its inside, while it is known
    }

    // Forget what changes when a box is opened or closed.
    toggled(box) {
      for (const each of ancestors(this.model.items, box)) this.boxes.delete(each);
    }

    // Return `{width, height, items: Map(number -> {x, y, width, height, open}), paths}` in one system of coordinates.
    place(open) {
      const whole = this.inside(-1, open);
      const items = new Map();
      const paths = [];
      const pending = [[-1, 0, 0]];
      while (pending.length) {
        const [box, dx, dy] = pending.pop();
        const inside = this.boxes.get(box);
        for (const path of inside.paths) {
          paths.push({ ...path, points: path.points.map(([x, y, straight]) => [x + dx, y + dy, straight]) });
        }
        for (const [number, spot] of inside.spots) {
          const isOpen = open.has(number);
          items.set(number, { x: spot.x + dx, y: spot.y + dy, width: spot.width, height: spot.height, open: isOpen });
          if (isOpen) pending.push([number, spot.x + dx, spot.y + dy]);
        }
      }
      return { width: whole.width, height: whole.height, items, paths };
    }

    // What stands under the label of an item that is no open box.
    second(number) {
      const { items, children, sizes } = this.model;
      return items[number].place || (children.has(number) ? `${sizes.get(number)} operations` : "");
    }

    size(number) {
      const { items, children } = this.model;
      const item = items[number];
      const width = Math.max(this.measure(item.label, false), this.measure(this.second(number), true));
      const isBox = children.has(number);
      const height = (this.second(number) ? TALL : NODE) + (item.kind === "module" ? BAR : 0);
      return { width: Math.min(Math.max(width + 22 + (isBox ? 16 : 0), 56), WIDEST), height };
    }

    // Lay out one open box: the places of its parts in it, and the paths between them.
    inside(box, open) {
      const known = this.boxes.get(box);
      if (known) return known;
      const parts = this.model.children.get(box);
      const sizes = new Map();
      for (const part of parts) {
        const made = open.has(part) && this.model.children.has(part) ? this.inside(part, open) : this.size(part);
        sizes.set(part, made);
      }
      const links = this.model.links.get(box);
      const made = box === -1 || parts.length ? this.arranged(box, parts, sizes, links) : { spots: new Map(), paths: [] };
      this.boxes.set(box, made);
      return made;
    }

    arranged(box, parts, sizes, links) {
      const nodes = parts.map((part) => ({ v: `n${part}`, part, width: sizes.get(part).width, height: sizes.get(part).height }));
      const routes = new Map();
      const addRoute = (v, w, weight) => {
        const key = `${v} ${w}`;
        if (!routes.has(key)) routes.set(key, edge(v, w, weight));
      };
      const { near, far } = sorted(parts, links);
      for (const link of near) {
        const v = link.from === ROOF ? `i${link.source}` : `n${link.from}`;
        const w = link.to === FLOOR ? `o${link.source}` : `n${link.to}`;
        if (link.from === ROOF) addRoute("roof", v, 6);
        if (link.to === FLOOR) addRoute(w, "floor", 6);
        addRoute(v, w, 1);
      }
      const ends = new Set();
      for (const { v, w } of routes.values()) ends.add(v).add(w);
      for (const end of ends) if (end[0] !== "n") nodes.push({ v: end, width: 4, height: 1 });
      const ranker = nodes.length > SIMPLEX_LIMIT ? "longest-path" : "network-simplex";
      if (nodes.length) {
        this.dagre.layout(nodes, [...routes.values()], { rankdir: "TB", ranksep: RANK_GAP, nodesep: NODE_GAP, edgesep: 12, ranker }, {});
      }
      return framed(box, nodes, routes, near, far, sizes, this.measure(box === -1 ? "" : this.model.items[box].label, false) + this.measure(box === -1 ? "" : this.model.items[box].place || "", true));
    }
  }

  function edge(v, w, weight) {
    return { v, w, minlen: 1, weight, width: 0, height: 0, labeloffset: 10, labelpos: "r" };
  }

  // Tell the links that are routed between the nodes from those that reach too far.
  function sorted(parts, links) {
    const rank = new Map(parts.map((part) => [part, 0]));
    const inner = links.filter((link) => link.from !== ROOF && link.to !== FLOOR);
    const bySource = new Map();
    for (const link of inner) {
      if (!bySource.has(link.from)) bySource.set(link.from, []);
      bySource.get(link.from).push(link.to);
    }
    for (const part of parts) { // in the order of the program, which is one of the graph
      for (const to of bySource.get(part) || []) rank.set(to, Math.max(rank.get(to), rank.get(part) + 1));
    }
    const near = [];
    const far = [];
    const reach = (link) => (link.to === FLOOR ? 0 : rank.get(link.to) - (link.from === ROOF ? 0 : rank.get(link.from)));
    const distant = new Map(); // value -> how many read it from afar
    for (const link of links) if (reach(link) > CLOSE) distant.set(link.source, (distant.get(link.source) || 0) + 1);
    for (const link of links) {
      const limit = (distant.get(link.source) || 0) > MANY ? CLOSE : FAR;
      (reach(link) > limit ? far : near).push(link);
    }
    return { near, far };
  }

  // Put a frame around what dagre placed, and draw the paths.
  function framed(box, nodes, routes, near, far, sizes, headWidth) {
    const real = nodes.filter((node) => node.part !== undefined);
    const at = new Map(nodes.map((node) => [node.v, node]));
    const halves = new Map(); // y of a rank -> half of its height
    for (const node of real) halves.set(key(node.y), Math.max(halves.get(key(node.y)) || 0, node.height / 2));
    let [left, right, top, bottom] = [Infinity, -Infinity, Infinity, -Infinity];
    for (const node of real) {
      left = Math.min(left, node.x - node.width / 2);
      right = Math.max(right, node.x + node.width / 2);
      top = Math.min(top, node.y - node.height / 2);
      bottom = Math.max(bottom, node.y + node.height / 2);
    }
    for (const { points } of routes.values()) {
      for (const point of points.slice(1, -1)) {
        left = Math.min(left, point.x);
        right = Math.max(right, point.x);
      }
    }
    if (!real.length) [left, right, top, bottom] = [0, 40, 0, 10];
    const hasFrame = box !== -1;
    const hasIn = near.some((link) => link.from === ROOF);
    const hasOut = near.some((link) => link.to === FLOOR);
    const above = hasFrame ? HEAD + (hasIn ? 16 : 6) : PAD;
    const below = hasFrame ? (hasOut ? 18 : 10) : PAD;
    const width = Math.max(right - left + 2 * PAD, hasFrame ? headWidth + 56 : 0);
    const dx = (width - (right - left)) / 2 - left;
    const dy = above - top;
    const height = bottom - top + above + below;
    const spots = new Map();
    for (const node of real) {
      spots.set(node.part, { x: node.x - node.width / 2 + dx, y: node.y - node.height / 2 + dy, width: node.width, height: node.height });
    }
    const frame = { dx, dy, height, top, bottom, halves };
    return { width, height, spots, ...drawn(frame, routes, near, far, sizes, spots, at) };
  }

  const key = (y) => Math.round(y * 4);

  function drawn(frame, routes, near, far, sizes, spots, at) {
    const { dx, dy, height } = frame;
    const inPorts = new Map(); // value that enters -> x
    const outPorts = new Map();
    const middle = (v, w) => {
      const points = routes.get(`${v} ${w}`).points.slice(1, -1);
      return points.filter((p) => p.y > frame.top - 1 && p.y < frame.bottom + 1).map((p) => [p.x + dx, p.y + dy, frame.halves.get(key(p.y)) || 0]);
    };
    const paths = new Map();
    for (const link of near) {
      const v = link.from === ROOF ? `i${link.source}` : `n${link.from}`;
      const w = link.to === FLOOR ? `o${link.source}` : `n${link.to}`;
      const fromX = link.from === ROOF ? null : (sizes.get(link.from).outPorts || new Map()).get(link.source);
      const toX = link.to === FLOOR ? null : (sizes.get(link.to).inPorts || new Map()).get(link.source);
      const name = `${v} ${w} ${fromX === undefined ? "" : link.source} ${toX === undefined ? "" : link.source}`;
      if (paths.has(name)) {
        const known = paths.get(name);
        known.edges.push(link.edge);
        continue;
      }
      const inner = middle(v, w);
      const points = [];
      if (link.from === ROOF) {
        const way = middle("roof", v);
        const port = at.get(v);
        const bends = [...way, ...(port.y > frame.top - 1 ? [[port.x + dx, port.y + dy, frame.halves.get(key(port.y)) || 0]] : []), ...inner];
        const x = inPorts.has(link.source) ? inPorts.get(link.source) : (way.length ? way[0][0] : port.x + dx);
        inPorts.set(link.source, x);
        points.push([x, 0]);
        points.push([x, HEAD + 4, true]);
        bends.forEach(([bx, by, half]) => pushBend(points, bx, by, half));
      } else {
        const spot = spots.get(link.from);
        const next = inner.length ? inner[0][0] : null;
        const x = fromX !== undefined ? spot.x + fromX : leaving(spot, next === null && link.to !== FLOOR ? center(spots.get(link.to)) : next === null ? at.get(w).x + dx : next);
        points.push([x, spot.y + spot.height]);
        const end = rankEnd(frame, at.get(v), 1);
        if (end + dy > spot.y + spot.height + 1) points.push([x, end + dy, true]);
        inner.forEach(([bx, by, half]) => pushBend(points, bx, by, half));
      }
      if (link.to === FLOOR) {
        const way = middle(w, "floor");
        const port = at.get(w);
        if (port.y < frame.bottom + 1) pushBend(points, port.x + dx, port.y + dy, frame.halves.get(key(port.y)) || 0);
        way.forEach(([bx, by, half]) => pushBend(points, bx, by, half));
        const x = outPorts.has(link.source) ? outPorts.get(link.source) : (way.length ? way[way.length - 1][0] : port.x + dx);
        outPorts.set(link.source, x);
        points.push([x, height - 4]);
        points.push([x, height, true]);
      } else {
        const spot = spots.get(link.to);
        const before = points[points.length - 1][0];
        const x = toX !== undefined ? spot.x + toX : leaving(spot, before);
        const start = rankEnd(frame, at.get(w), -1);
        if (start + dy < spot.y - 1) {
          points.push([x, start + dy]);
          points.push([x, spot.y, true]);
        } else {
          points.push([x, spot.y]);
        }
      }
      paths.set(name, { source: link.source, from: link.from, to: link.to, edges: [link.edge], points, far: false });
    }
    for (const link of far) {
      const name = `far ${link.from} ${link.to} ${link.source}`;
      if (paths.has(name)) {
        paths.get(name).edges.push(link.edge);
        continue;
      }
      // a short end with the name of the value's source
      const to = spots.get(link.to);
      const port = (sizes.get(link.to).inPorts || new Map()).get(link.source);
      const x = to.x + (port ?? to.width / 2 + Math.min(18, to.width / 4));
      paths.set(name, { source: link.source, from: link.from, to: link.to, edges: [link.edge], points: [[x, to.y - 15], [x, to.y]], far: true });
    }
    return { paths: [...paths.values()], inPorts, outPorts };
  }

  const center = (spot) => spot.x + spot.width / 2;

  // Where an edge leaves a node: towards where it goes, but not near a corner.
  function leaving(spot, towards) {
    const reach = Math.max(0, spot.width / 2 - 14) * 0.7;
    return center(spot) + Math.max(-reach, Math.min(reach, (towards - center(spot)) * 0.3));
  }

  // The edge of the rank that a node is in, above (-1) or below (1) all of its nodes.
  function rankEnd(frame, node, side) {
    return node.y + side * (frame.halves.get(key(node.y)) || 0);
  }

  function pushBend(points, x, y, half) {
    if (half) {
      points.push([x, y - half]);
      points.push([x, y + half, true]);
    } else {
      points.push([x, y]);
    }
  }

  // The path of an edge as SVG: straight where it passes nodes, curved between the ranks.
  function svgPath(points) {
    const f = (n) => Math.round(n * 10) / 10;
    let [x0, y0] = points[0];
    let text = `M${f(x0)} ${f(y0)}`;
    for (const [x, y, straight] of points.slice(1)) {
      if (straight || Math.abs(x - x0) < 0.5) text += `L${f(x)} ${f(y)}`;
      else text += `C${f(x0)} ${f((y0 + y) / 2)} ${f(x)} ${f((y0 + y) / 2)} ${f(x)} ${f(y)}`;
      [x0, y0] = [x, y];
    }
    return text;
  }

  return { prepare, firstOpen, Arrangement, ancestors, svgPath, HEAD };
})();
