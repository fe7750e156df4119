"""The README's sixty seconds come out as shown, but for numbers."""

import re
import subprocess
from pathlib import Path

from installed_command import IOMMU_EMU

README = Path(__file__).parents[2] / "README.md"


def comparable(text: str) -> list[str]:
    """Words without numbers, and without what a busy host may not be quick enough for."""
    text = re.sub(r"and yet .*?(?=Linux +DMAR)", "", text, flags=re.S)
    return [re.sub(r"\S*\d\S*", "N", word) for word in text.split()]


def test_live_readme_shows_what_break_prints(guest_kernel):
    guest_kernel("trixie")
    shown = re.search(r"\n    Linux .*?\n    Both [^\n]*\n", README.read_text(), re.S)
    run = subprocess.run(
        [IOMMU_EMU, "guest", "linux", "--break"], capture_output=True, text=True, check=True
    )
    assert comparable(run.stdout) == comparable(shown[0])
