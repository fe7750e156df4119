const view = new View();
$("run").append(
  ...results.map((result, index) =>
    element("option", { value: index }, `${result.scenario} on ${vendors[result.iommu]}`),
  ),
);
$("run").value = String(state.run);
$("run").onchange = (event) => {
  state.run = Number(event.target.value);
  state.row = telling(state.run);
  view.forget();
  showRun();
};
showRun();
