"""The drivers under the oracle: strict, nothing stale is ever used; careless, nothing forbidden.

Both vendors, both ways to look up the IOTLB, with and without caching of faulting entries.
"""

from __future__ import annotations

from driver_machine import DriverMachine
from hypothesis import settings

from iommu_emu.core import IotlbLookup

CASES = {
    f"Test{vendor.capitalize()}{'ByDomain' * by_domain}{'Negative' * negative}"
    f"{'Careless' if careless else 'Strict'}": type(
        "Machine",
        (DriverMachine,),
        {
            "vendor": vendor,
            "lookup": IotlbLookup.BY_DOMAIN if by_domain else IotlbLookup.BY_REQUESTER,
            "negative": negative,
            "careless": careless,
        },
    ).TestCase
    for vendor in ("vtd", "amdvi")
    for by_domain in (False, True)
    for negative in (False, True)
    for careless in (False, True)
}
for _name, _case in CASES.items():
    _case.settings = settings(max_examples=10, stateful_step_count=30, deadline=None)
    globals()[_name] = _case
del _name, _case
