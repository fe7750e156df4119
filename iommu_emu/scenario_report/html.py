"""One HTML file that shows results: no network, no other file, nothing to install.

The page is page.html with page.css and the scripts put in, and the results as JSON. What the script
shows, it puts in as text, so nothing that a policy or a log says becomes a part of the page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from string import Template
from typing import Any

from iommu_emu.scenario_report.words import VENDORS

_SCRIPTS = ("words.js", "results.js", "lanes.js", "timeline.js", "page.js")  # in this order

__all__ = ["page"]


def page(report: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        report: what `plain` returned.
    """
    results = [_compact(result) for result in report["results"]]
    text = json.dumps({"results": results, "vendors": VENDORS}, separators=(",", ":"))
    folder = files("iommu_emu.scenario_report")
    return Template((folder / "page.html").read_text("utf-8")).substitute(
        style=(folder / "page.css").read_text("utf-8"),
        script="\n".join((folder / name).read_text("utf-8") for name in _SCRIPTS),
        data=text.replace("<", "\\u003c"),  # no "</script>" in it ends the element
    )


def _compact(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result with its events as lists, and addresses that JavaScript would round."""
    rows = [{**row, "timeline": [_event(e) for e in row["timeline"]]} for row in result["rows"]]
    return {**result, "rows": rows}


def _event(event: Mapping[str, Any]) -> list[Any]:
    address = None if event["address"] is None else f"{event['address']:#x}"
    return [
        event["time"],
        event["kind"],
        event["lane"],
        event["text"],
        address,
        event["size"],
        event["duration"],
    ]
