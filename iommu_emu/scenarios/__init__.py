"""What operating systems do with an IOMMU, as things one can run and measure.

One file a scenario, and nothing else to register: a module of this package that defines
`SCENARIO` is one.
"""

from iommu_emu.scenarios.result import Costs, Outcome
from iommu_emu.scenarios.scenario import Attack, Scenario

__all__ = ["Attack", "Costs", "Outcome", "Scenario"]
