"""A timing model as a table, with the source of every number."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from iommu_emu.timing_model import TimingModel

__all__ = ["timing_table"]


def timing_table(model: TimingModel) -> Table:
    """Return every number of a model: as given, in ns, how sure it is, and where it comes from."""
    table = Table(
        title=f"{model.name}: {model.title}",
        caption=f"{model.description.strip()}\nClock: {model.clock:g} GHz".strip(),
        caption_justify="left",
    )
    for header in ("number", "of", "given", "ns", "certainty", "source"):
        table.add_column(
            header,
            justify="right" if header in ("given", "ns") else "left",
            no_wrap=header not in ("of", "source"),
        )
    for row in model.rows():
        ns = f"{row.ns:,.0f}" if row.ns >= 1000 else f"{row.ns:.4g}"
        cells = (row.name, row.about, row.given, ns, row.certainty, row.source)
        table.add_row(*(Text(cell) for cell in cells))
    return table
