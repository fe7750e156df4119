function sentence(event) {
  const address = event.address ? ` at ${event.address}` : "";
  const size = event.size ? `, ${event.size} bytes` : "";
  const lasts = event.lasts ? `, for ${duration(event.lasts)}` : "";
  return `${event.lane}: ${event.text}${address}${size}${lasts}`;
}

function clipped(draw, text, width) {
  if (draw.measureText(text).width <= width) return text;
  let short = text;
  while (short && draw.measureText(`${short}…`).width > width) short = short.slice(0, -1);
  return `${short}…`;
}

function laneOrder(events) {
  const rank = (lane) => {
    if (lane === "story") return 0;
    if (lane.startsWith("CPU")) return 1;
    return lane === "IOMMU" ? 4 : events.some((e) => e.lane === lane && e.kind === "log") ? 2 : 3;
  };
  const names = [...new Set(events.map((event) => event.lane))];
  const ranks = new Map(names.map((name) => [name, rank(name)]));
  return names.sort((a, b) => {
    return ranks.get(a) - ranks.get(b) || a.localeCompare(b, "en", { numeric: true });
  });
}

// From each map to its unmap, and on to the flush after which no cache can have it any more.
function mappings(events) {
  const bars = [];
  const open = new Map();
  let stale = [];
  const end = events.length;
  events.forEach((event, i) => {
    const start = event.address === null ? null : BigInt(event.address);
    if (event.kind === "map" && start !== null) {
      const bar = { from: i, unmapped: end, flushed: end, lingers: true };
      Object.assign(bar, { start, stop: start + BigInt(event.size) });
      bars.push(bar);
      open.set(event.address, bar);
    } else if (event.kind === "unmap" && open.has(event.address)) {
      const bar = open.get(event.address);
      open.delete(event.address);
      bar.unmapped = i;
      stale.push(bar);
    } else if (event.kind === "flush") {
      stale = stale.filter((bar) => {
        const covered = start === null
          || (bar.start < start + BigInt(event.size) && start < bar.stop);
        if (covered) {
          bar.flushed = i;
          bar.lingers = event.time > events[bar.unmapped].time;
        }
        return !covered;
      });
    }
  });
  const busy = [];
  return bars.filter((bar) => {
    bar.level = busy.findIndex((until) => until <= bar.from);
    if (bar.level < 0) bar.level = busy.length;
    if (bar.level >= MAX_STACK) return false;
    busy[bar.level] = bar.flushed;
    return true;
  });
}

function niceStep(least, whole) {
  const power = 10 ** Math.floor(Math.log10(Math.max(least, 1e-3)));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= least);
  return whole ? Math.max(1, Math.round(step)) : Math.max(1, step);
}

function sign(draw, kind, x, y, colour) {
  draw.fillStyle = draw.strokeStyle = colour(kind);
  draw.beginPath();
  if (kind === "map" || kind === "unmap") {
    const up = kind === "map" ? -1 : 1;
    draw.moveTo(x - 6, y - 4 * up);
    draw.lineTo(x + 6, y - 4 * up);
    draw.lineTo(x, y + 6 * up);
    draw.fill();
  } else if (kind === "flush") {
    draw.moveTo(x, y - 7);
    draw.lineTo(x + 6, y);
    draw.lineTo(x, y + 7);
    draw.lineTo(x - 6, y);
    draw.fill();
  } else if (kind === "reuse" || kind === "note") {
    draw.arc(x, y, kind === "note" ? 4 : 5, 0, 7);
    if (kind === "note") draw.stroke();
    else draw.fill();
  } else if (kind === "dma") {
    draw.fillRect(x - 5, y - 5, 10, 10);
  } else if (kind === "fault") {
    draw.lineWidth = 3;
    draw.moveTo(x - 5, y - 5);
    draw.lineTo(x + 5, y + 5);
    draw.moveTo(x + 5, y - 5);
    draw.lineTo(x - 5, y + 5);
    draw.stroke();
    draw.lineWidth = 1;
  } else {
    draw.fillRect(x - 6, y - 2, 12, 4);
  }
}
