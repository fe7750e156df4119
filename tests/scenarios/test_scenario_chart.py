"""The chart of costs and windows."""

import pytest
from results import POLICIES, SCENARIO, result

from iommu_emu.scenario_report.chart import check_chart, draw


def test_chart_names_policies_and_vendors(tmp_path):
    draw(tmp_path / "c.svg", [(SCENARIO, result()), (SCENARIO, result(iommu="amdvi"))])
    text = (tmp_path / "c.svg").read_text()
    for word in (*POLICIES, "VT-d: map", "AMD-Vi: window", "10 ms", "Made up"):
        assert f"<!-- {word} -->" in text


def test_chart_is_also_drawn_as_a_picture(tmp_path):
    draw(tmp_path / "c.png", [(SCENARIO, result())])
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_chart_needs_a_name_that_says_what_it_is(tmp_path):
    with pytest.raises(ValueError, match=r"a chart's name must end in .png, .svg, .pdf$"):
        check_chart(tmp_path / "chart", [SCENARIO])
