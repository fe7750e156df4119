const LANE = 30; // px
const AXIS = 24;
const LEFT = 130; // px of lane names
const MAX_LISTED = 300;
const MAX_STACK = 6; // mappings drawn one above the other

class View {
  constructor() {
    this.canvas = $("timeline");
    this.hidden = new Set();
    this.events = [];
    this.current = -1; // event that n and p have come to
    this.even = false;
    this.from = 0;
    this.to = 1;
    const given = ["from", "to"].map((name) => parseFloat(asked.get(name)));
    this.asked = given.every(Number.isFinite) ? given : null;
    this.askedEven = asked.has("even") ? asked.get("even") === "1" : null;
    this.listen();
  }

  forget() {
    this.asked = null;
    this.askedEven = null;
  }

  asWords() {
    const words = { even: this.even ? 1 : 0 };
    const [first, last] = this.whole();
    if (this.from > first || this.to < last) {
      words.from = Number(this.from.toPrecision(12));
      words.to = Number(this.to.toPrecision(12));
    }
    return words;
  }

  show(row) {
    this.events = row.timeline
      .map(([time, kind, lane, text, address, size, lasts]) => ({
        time, kind, lane, text, address, size, lasts,
      }))
      .sort((a, b) => a.time - b.time);
    this.dropped = row.timeline_dropped;
    this.lanes = laneOrder(this.events);
    this.bars = mappings(this.events);
    this.current = -1;
    const moments = new Set(this.events.map((event) => event.time)).size;
    // Where most things happen at the same moment, one step an event shows more.
    this.even = this.askedEven ?? moments * 2 < this.events.length;
    $("even").checked = this.even;
    [this.from, this.to] = this.whole();
    if (this.asked) this.look(...this.asked);
    this.showLegend();
    this.resize();
  }

  showLegend() {
    const present = new Set(this.events.map((event) => event.kind));
    $("legend").replaceChildren(
      ...Object.entries(KINDS)
        .filter(([kind]) => present.has(kind))
        .map(([kind, [sign, name]]) =>
          element(
            "button",
            {
              type: "button",
              "aria-pressed": String(!this.hidden.has(kind)),
              style: `color: var(--${kind})`,
              onclick: () => {
                if (!this.hidden.delete(kind)) this.hidden.add(kind);
                this.showLegend();
                this.redraw();
              },
            },
            `${sign} ${name}`,
          ),
        ),
    );
    if (!this.bars.length) return;
    for (const [kind, name] of [["mapped", "a mapping"], ["stale", "unmapped, not yet flushed"]]) {
      const swatch = element("i", { class: `swatch ${kind}`, "aria-hidden": "true" });
      $("legend").append(element("span", {}, swatch, ` ${name}`));
    }
  }

  // Where things are: an event's place is its number, or its time.

  place(index) {
    return this.even ? index : this.events[index].time;
  }

  whole() {
    const count = this.events.length;
    if (!count) return [0, 1];
    if (this.even) return [-0.5, count - 0.5];
    const first = this.events[0].time;
    const last = this.events.reduce((end, e) => Math.max(end, e.time + e.lasts), first);
    const margin = Math.max(1, (last - first) * 0.02);
    return [first - margin, last + margin];
  }

  x(place) {
    return LEFT + ((place - this.from) / (this.to - this.from)) * (this.width - LEFT - 10);
  }

  placeAt(x) {
    return this.from + ((x - LEFT) / (this.width - LEFT - 10)) * (this.to - this.from);
  }

  firstFrom(place) {
    let low = 0;
    let high = this.events.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.place(middle) < place) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  inView() {
    const found = [];
    for (let i = this.firstFrom(this.from); i < this.events.length; i++) {
      if (this.place(i) > this.to) break;
      if (!this.hidden.has(this.events[i].kind)) found.push(i);
    }
    return found;
  }

  // Moving.

  look(from, to) {
    const [first, last] = this.whole();
    const least = this.even ? 2 : 4;
    const span = Math.min(last - first, Math.max(Math.min(least, last - first), to - from));
    const middle = (from + to) / 2;
    const start = Math.min(Math.max(first, middle - span / 2), last - span);
    this.from = start;
    this.to = start + span;
  }

  zoom(factor, around = (this.from + this.to) / 2) {
    this.look(around - (around - this.from) * factor, around + (this.to - around) * factor);
    this.redraw();
  }

  pan(part) {
    const step = (this.to - this.from) * part;
    this.look(this.from + step, this.to + step);
    this.redraw();
  }

  reset() {
    [this.from, this.to] = this.whole();
    this.redraw();
  }

  setEven(even) {
    const shown = this.inView();
    this.even = even;
    $("even").checked = even;
    [this.from, this.to] = this.whole();
    if (shown.length && shown.length < this.events.length) {
      const ends = [this.place(shown[0]), this.place(shown[shown.length - 1])];
      const margin = even ? 0.5 : Math.max(2, (ends[1] - ends[0]) * 0.05);
      this.look(ends[0] - margin, ends[1] + margin);
    }
    this.redraw();
  }

  go(step) {
    let next = this.current < 0 ? this.firstFrom(this.from) - (step > 0 ? 1 : 0) : this.current;
    do next += step;
    while (this.events[next] && this.hidden.has(this.events[next].kind));
    if (!this.events[next]) return;
    this.current = next;
    const place = this.place(next);
    if (place < this.from || place > this.to) {
      const half = (this.to - this.from) / 2;
      this.look(place - half, place + half);
    }
    this.redraw();
    this.tell(next);
    $("spoken").textContent = sentence(this.events[next]);
  }

  // Drawing.

  resize() {
    const ratio = window.devicePixelRatio || 1;
    this.width = Math.max(320, this.canvas.parentElement.clientWidth);
    this.stack = Math.max(0, ...this.bars.map((bar) => bar.level + 1));
    this.top = this.stack ? 10 + this.stack * 9 : 0;
    this.height = AXIS + this.top + this.lanes.length * LANE + 4;
    this.canvas.style.height = `${this.height}px`;
    this.canvas.width = this.width * ratio;
    this.canvas.height = this.height * ratio;
    this.draw = this.canvas.getContext("2d");
    this.draw.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.redraw();
  }

  redraw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.paint();
      this.list();
      remember();
    });
  }

  paint() {
    const draw = this.draw;
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    $("tip").hidden = true;
    draw.clearRect(0, 0, this.width, this.height);
    draw.font = "12px system-ui, 'DejaVu Sans', sans-serif";
    draw.textBaseline = "middle";
    this.paintAxis(colour);
    draw.fillStyle = colour("text");
    if (this.stack) draw.fillText("mappings", 8, AXIS + this.top / 2);
    this.lanes.forEach((lane, i) => {
      const y = this.laneY(i);
      draw.fillStyle = colour("text");
      draw.fillText(clipped(draw, lane, LEFT - 16), 8, y);
      draw.fillStyle = colour("line");
      draw.fillRect(LEFT, Math.round(y), this.width - LEFT, 1);
    });
    draw.save();
    draw.beginPath();
    draw.rect(LEFT - 6, 0, this.width - LEFT + 6, this.height);
    draw.clip();
    this.paintBars(colour);
    this.paintEvents(colour);
    draw.restore();
    this.showRange();
  }

  laneY(i) {
    return AXIS + this.top + (i + 0.5) * LANE;
  }

  paintAxis(colour) {
    const draw = this.draw;
    const step = niceStep(((this.to - this.from) * 110) / (this.width - LEFT), this.even);
    draw.fillStyle = colour("quiet");
    let last = "";
    for (let at = Math.ceil(this.from / step) * step; at <= this.to; at += step) {
      const event = this.even ? this.events[Math.round(at)] : null;
      if (this.even && !event) continue;
      const x = this.x(at);
      const label = this.even ? duration(event.time) : moment(at, step);
      const before = x + 3 + draw.measureText(label).width > this.width;
      const place = before ? x - 3 - draw.measureText(label).width : x + 3;
      if (label !== last) draw.fillText(label, place, AXIS / 2);
      last = label;
      draw.globalAlpha = 0.25;
      draw.fillRect(Math.round(x), 4, 1, this.height);
      draw.globalAlpha = 1;
    }
  }

  paintBars(colour) {
    if (!this.stack) return;
    const draw = this.draw;
    for (const bar of this.bars) {
      const y = AXIS + 4 + bar.level * 9;
      const ends = [bar.from, bar.unmapped, bar.flushed].map((i) =>
        this.x(i >= this.events.length ? this.whole()[1] : this.place(i)),
      );
      if (ends[2] < LEFT || ends[0] > this.width) continue;
      draw.fillStyle = colour("mapped");
      draw.fillRect(ends[0], y, Math.max(1, ends[1] - ends[0]), 7);
      if (bar.lingers && ends[2] > ends[1]) {
        draw.fillStyle = colour("stale");
        draw.globalAlpha = 0.35;
        draw.fillRect(ends[1], y, ends[2] - ends[1], 7);
        draw.globalAlpha = 1;
        draw.strokeStyle = colour("stale");
        draw.strokeRect(ends[1] + 0.5, y + 0.5, Math.max(0, ends[2] - ends[1] - 1), 6);
      }
    }
  }

  paintEvents(colour) {
    const draw = this.draw;
    const lane = new Map(this.lanes.map((name, i) => [name, this.laneY(i)]));
    const taken = new Map(); // last pixel of a lane and kind: one sign a pixel is enough
    for (const i of this.inView()) {
      const event = this.events[i];
      const x = this.x(this.place(i));
      const y = lane.get(event.lane);
      const key = `${event.lane}\n${event.kind}`;
      if (event.lasts && !this.even) {
        draw.fillStyle = colour(event.kind);
        draw.globalAlpha = 0.5;
        draw.fillRect(x, y - 3, Math.max(1, this.x(event.time + event.lasts) - x), 6);
        draw.globalAlpha = 1;
      }
      if (taken.get(key) === Math.round(x) && i !== this.current) continue;
      taken.set(key, Math.round(x));
      sign(draw, event.kind, x, y, colour);
      if (i === this.current) {
        draw.strokeStyle = colour("focus");
        draw.lineWidth = 2;
        draw.strokeRect(x - 9, y - 9, 18, 18);
        draw.lineWidth = 1;
      }
    }
  }

  showRange() {
    const count = this.events.length;
    if (!count) {
      $("range").textContent = "no events";
      return;
    }
    const seen = this.inView();
    const ends = this.even && seen.length
      ? [this.events[seen[0]].time, this.events[seen[seen.length - 1]].time]
      : [
        Math.max(this.from, this.events[0].time),
        Math.min(this.to, this.events.reduce((end, e) => Math.max(end, e.time + e.lasts), 0)),
      ];
    const step = (ends[1] - ends[0]) / 100;
    const lost = this.dropped ? `, ${this.dropped} more were not kept` : "";
    $("range").textContent =
      `${moment(ends[0], step)} to ${moment(ends[1], step)}: ${seen.length} of ${count} events${lost}`;
  }

  list() {
    const seen = this.inView();
    const shown = seen.slice(0, MAX_LISTED);
    const more = seen.length > shown.length ? `, the first ${MAX_LISTED}` : "";
    $("listing").querySelector("summary").textContent = `Events in view as a list${more}`;
    if (!$("listing").open) return;
    const head = element("tr");
    for (const heading of ["time", "kind", "who", "what", "address", "bytes"]) {
      head.append(element("th", { scope: "col" }, heading));
    }
    const lines = shown.map((i) => {
      const event = this.events[i];
      const line = element("tr");
      for (const text of [
        duration(event.time, EXACT),
        `${KINDS[event.kind][0]} ${event.kind}`,
        event.lane,
        event.text,
        event.address ?? "",
        event.size || "",
      ]) {
        line.append(element("td", {}, String(text)));
      }
      return line;
    });
    $("events").replaceChildren(element("thead", {}, head), element("tbody", {}, ...lines));
  }

  // Pointing.

  nearest(x, y) {
    const lane = this.lanes[Math.floor((y - AXIS - this.top) / LANE)];
    let best = -1;
    let distance = 9;
    const reach = ((this.to - this.from) * 10) / (this.width - LEFT);
    const end = this.placeAt(x) + reach;
    for (let i = this.firstFrom(this.placeAt(x) - reach); i < this.events.length; i++) {
      if (this.place(i) > end) break;
      const event = this.events[i];
      if (event.lane !== lane || this.hidden.has(event.kind)) continue;
      const away = Math.abs(this.x(this.place(i)) - x);
      if (away < distance) [best, distance] = [i, away];
    }
    return best;
  }

  tell(index) {
    const tip = $("tip");
    const event = this.events[index];
    if (!event) {
      tip.hidden = true;
      return;
    }
    const x = this.x(this.place(index));
    const same = this.events.filter(
      (e, i) => e.lane === event.lane && Math.abs(this.x(this.place(i)) - x) < 1,
    ).length;
    tip.replaceChildren(
      element("strong", {}, `${duration(event.time, EXACT)} · ${KINDS[event.kind][1]}`),
      element("div", {}, sentence(event)),
      ...(same > 1 ? [element("div", { class: "quiet" }, `and ${same - 1} more here`)] : []),
    );
    tip.hidden = false;
    const y = this.laneY(this.lanes.indexOf(event.lane));
    const left = Math.min(x + 12, this.width - tip.offsetWidth - 4);
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${y + 14}px`;
  }

  listen() {
    const canvas = this.canvas;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    let grabbed = null;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const [x] = at(event);
      if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
        this.pan((event.deltaX || event.deltaY) / this.width);
      } else {
        this.zoom(Math.exp(event.deltaY * 0.0015), this.placeAt(x));
      }
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      grabbed = this.placeAt(at(event)[0]);
      canvas.setPointerCapture(event.pointerId);
      canvas.classList.add("dragged");
    });
    canvas.addEventListener("pointermove", (event) => {
      const [x, y] = at(event);
      if (grabbed === null) {
        this.tell(this.nearest(x, y));
        return;
      }
      const shift = grabbed - this.placeAt(x);
      this.look(this.from + shift, this.to + shift);
      this.redraw();
    });
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, () => {
        grabbed = null;
        canvas.classList.remove("dragged");
      });
    }
    canvas.addEventListener("pointerleave", () => this.tell(-1));
    canvas.addEventListener("dblclick", (event) => this.zoom(0.4, this.placeAt(at(event)[0])));
    const keys = {
      ArrowLeft: () => this.pan(-0.15),
      ArrowRight: () => this.pan(0.15),
      ArrowUp: () => this.zoom(0.7),
      ArrowDown: () => this.zoom(1 / 0.7),
      "+": () => this.zoom(0.7),
      "=": () => this.zoom(0.7),
      "-": () => this.zoom(1 / 0.7),
      Home: () => this.reset(),
      n: () => this.go(1),
      p: () => this.go(-1),
      Escape: () => this.tell(-1),
    };
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
      event.preventDefault();
      keys[event.key]();
    });
    $("zoom-in").onclick = () => this.zoom(0.6);
    $("zoom-out").onclick = () => this.zoom(1 / 0.6);
    $("pan-left").onclick = () => this.pan(-0.3);
    $("pan-right").onclick = () => this.pan(0.3);
    $("reset").onclick = () => this.reset();
    $("even").onchange = (event) => this.setEven(event.target.checked);
    $("listing").ontoggle = () => this.list();
    window.addEventListener("resize", () => this.resize());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }
}
