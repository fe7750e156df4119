// What is chosen is in the address, so that a view can be linked to.

const asked = new URLSearchParams(location.hash.slice(1));
const state = { run: Math.min(Math.max(0, Number(asked.get("run")) || 0), results.length - 1) };
state.row = asked.has("row") ? Math.max(0, Number(asked.get("row")) || 0) : telling(state.run);

// The first row in which something got through has more to show than one in which nothing did.
function telling(run) {
  return Math.max(0, results[run].rows.findIndex((row) => !row.blocked));
}

function remember() {
  const words = new URLSearchParams({ run: state.run, row: state.row, ...view.asWords() });
  try {
    history.replaceState(null, "", `#${words}`);
  } catch {
    // Too often, or not allowed for a file: the view is just not in the address.
  }
}

// Scenario and matrix.

function showRun() {
  const result = results[state.run];
  state.row = Math.min(state.row, Math.max(0, result.rows.length - 1));
  $("scenario-title").textContent = `${result.title} (${vendors[result.iommu]})`;
  $("question").textContent = result.question;
  $("conditions").textContent =
    `From: ${result.source}. Seed ${result.seed}, timing model ${result.timing}.`;
  $("answer").textContent = result.answer;
  const attacks = [...new Set(result.rows.map((row) => row.attack))];
  const priced = result.summary.some((summary) => summary.pair_ns !== null);
  const head = element("tr", {}, element("th", { scope: "col" }, "policy"));
  for (const heading of ["let in", "for up to", ...(priced ? ["map + unmap"] : [])]) {
    head.append(element("th", { scope: "col", class: "number" }, heading));
  }
  for (const attack of attacks) {
    head.append(element("th", { scope: "col", title: result.attacks[attack] }, attack));
  }
  const body = element("tbody");
  for (const summary of result.summary) {
    const { policy } = summary;
    const line = element("tr", {}, element("th", { scope: "row", title: result.policies[policy] }, policy));
    for (const text of inShort(summary, priced)) {
      line.append(element("td", { class: "number" }, text));
    }
    for (const attack of attacks) {
      const index = result.rows.findIndex((r) => r.policy === policy && r.attack === attack);
      line.append(element("td", {}, index < 0 ? "" : cell(result.rows[index], index)));
    }
    body.append(line);
  }
  $("matrix").replaceChildren(element("thead", {}, head), body);
  showCosts(result);
  showRow();
}

// What a policy lets in, for how long, and at what price.
function inShort(summary, priced) {
  const open = summary.let_in.length;
  const price = summary.pair_ns === null ? "" : duration(summary.pair_ns);
  return [
    `${open} of ${summary.tried}`,
    open ? windowText(summary) : "",
    ...(priced ? [price] : []),
  ];
}

function cell(row, index) {
  const off = row.deviations && row.deviations.length;
  const text = `${row.blocked ? "✔" : "✘"} ${outcome(row)}${off ? " (unexpected)" : ""}`;
  return element(
    "button",
    {
      type: "button",
      class: row.blocked ? "good" : "bad",
      "data-row": index,
      title: `window: ${windowText(row)}`,
      onclick: () => {
        state.row = index;
        view.forget();
        showRow();
      },
    },
    text,
  );
}

// One policy under one attack.

function showRow() {
  const result = results[state.run];
  const row = result.rows[state.row];
  for (const button of document.querySelectorAll("#matrix button")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.row) === state.row));
  }
  if (!row) return;
  $("row-title").textContent = `${row.policy} against ${row.attack}: ${outcome(row)}`;
  $("policy-summary").textContent = `${row.policy}: ${result.policies[row.policy]}`;
  $("attack-summary").textContent = `${row.attack}: ${result.attacks[row.attack]}`;
  showVerdict(row);
  const told = row.refused ? [...row.story, `Refused: ${row.refused}`] : row.story;
  $("story").replaceChildren(...told.map((sentence) => element("p", {}, sentence)));
  const facts = {
    window: windowText(row),
    "DMAs in it": row.dmas,
    "stale uses": row.stale_uses,
    "queued to the IOMMU": row.descriptors,
    "of that invalidations": row.invalidations,
    "bytes copied": row.copied,
  };
  $("facts").replaceChildren(
    ...Object.entries(facts).map(([name, value]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, String(value))),
    ),
  );
  showLines($("faults"), row.faults);
  showLines($("log"), row.log);
  view.show(row);
  remember();
}

function showVerdict(row) {
  const shown = $("verdict");
  shown.className = "";
  if (row.deviations === null) {
    shown.textContent = "Nothing is expected of policies and scenarios that are not built in.";
  } else if (row.deviations.length) {
    shown.textContent = `Not as expected: ${row.deviations.join("; ")}.`;
    shown.className = "bad-text";
  } else {
    shown.textContent = "As expected of this policy.";
    shown.className = "good-text";
  }
}

function showLines(list, lines) {
  const shown = lines.length ? lines : ["nothing"];
  list.replaceChildren(...shown.map((line) => element("li", {}, line)));
}

function showCosts(result) {
  // Below a policy come its other pairs.
  const entries = Object.entries(result.costs).flatMap(([policy, costs]) => [
    [policy, costs, "policy"],
    ...Object.entries(costs.others).map(([name, other]) => [name, other, "other"]),
  ]);
  $("costs-section").hidden = !entries.length;
  const most = Math.max(1, ...entries.map(([, c]) => c.map_ns + c.unmap_ns));
  const keeps = entries.some(([, c]) => c.frames);
  const headings = ["policy", "", "map", "unmap", "in the emulator", "lock wait", "copied a pair",
    "queued a pair", "invalidations a pair", ...(keeps ? ["frames kept"] : []), "Gb/s"];
  const head = element("tr");
  headings.forEach((heading, i) => {
    const of = { map: "map", unmap: "flush" }[heading]; // colour of its part of the bar
    const swatch = of ? [element("i", { class: "swatch", style: `background: var(--${of})` })] : [];
    const column = { scope: "col", class: i > 1 ? "number" : null };
    head.append(element("th", column, ...swatch, ` ${heading}`));
  });
  const body = element("tbody");
  for (const [name, costs, kind] of entries) {
    const pairs = Math.max(1, costs.operations);
    const width = (ns) => `width:${(100 * ns) / most}%`;
    const bar = element("div", { class: "bar", "aria-hidden": "true" });
    bar.append(element("span", { class: "map", style: width(costs.map_ns), title: "map" }));
    bar.append(element("span", { class: "unmap", style: width(costs.unmap_ns), title: "unmap" }));
    const line = element("tr", {}, element("th", { scope: "row", class: kind }, name));
    line.append(element("td", {}, bar));
    const perPair = (count) => {
      const each = count / pairs;
      return each >= 100 ? each.toFixed(0) : String(Number(each.toPrecision(2)));
    };
    for (const text of [
      duration(costs.map_ns),
      duration(costs.unmap_ns),
      `${duration(costs.measured_map_ns)} + ${duration(costs.measured_unmap_ns)}`,
      duration(costs.lock_wait_ns),
      perPair(costs.copied),
      perPair(costs.descriptors),
      perPair(costs.invalidations),
      ...(keeps ? [String(costs.frames)] : []),
      costs.gbps ? String(Number(costs.gbps.toPrecision(3))) : "",
    ]) {
      line.append(element("td", { class: "number" }, text));
    }
    body.append(line);
  }
  $("costs").replaceChildren(element("thead", {}, head), body);
}
