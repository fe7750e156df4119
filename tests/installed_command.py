"""The command as it is installed.

`python -m iommu_emu...` would take the package from the current folder, which in a checkout has no
compiled core.
"""

import sys
from pathlib import Path

IOMMU_EMU = str(Path(sys.executable).with_name("iommu-emu"))
