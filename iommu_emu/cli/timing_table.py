"""A timing model as a table, with the source of every number."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from iommu_emu.scenario_report.words import duration
from iommu_emu.timing_model import TimingModel

__all__ = ["timing_table"]


def timing_table(model: TimingModel, *, wide: bool) -> Table:
    """Return every number of a model with what it is of, how sure it is, and where it comes from.

    Args:
        model: the model.
        wide: whether there is room for the numbers as they were given, too.
    """
    table = Table(
        box=None,
        pad_edge=False,
        title=f"{model.name}: {model.title}",
        title_justify="left",
        caption=f"\n{model.description.strip()}\nClock: {model.clock:g} GHz",
        caption_justify="left",
    )
    table.add_column("number", no_wrap=True, style="cyan")
    table.add_column("time", justify="right", no_wrap=True)
    if wide:
        table.add_column("given", justify="right", no_wrap=True)
    table.add_column("certainty", no_wrap=True)
    table.add_column("of what; source", overflow="fold")
    for row in model.rows():
        table.add_row(
            row.name,
            duration(row.ns),
            *([row.given] if wide else []),
            row.certainty,
            Text.assemble(row.about, (f"\n{row.source}", "dim") if row.source else ""),
        )
    return table
