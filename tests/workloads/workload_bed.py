"""Prices of which every sum tells what it is made of."""

from iommu_emu.timing_model import Number, TimingModel

PRICES = {
    "map_call": 1,
    "unmap_call": 2,
    "iova_allocate": 10,
    "iova_search": 50,
    "iova_free": 20,
    "table_map": 100,
    "table_unmap": 200,
    "queue_add": 3,
    "submit": 1_000,
    "invalidate_page": 10_000,
    "invalidate_domain": 20_000,
    "wait": 5_000,
    "copy": 0.5,
    "packet": 100_000,
    "block": 200_000,
}
MODEL = TimingModel(
    name="test", title="", numbers={name: Number(price) for name, price in PRICES.items()}
)
MAP = 1 + 10 + 100
STRICT_UNMAP = 200 + 1_000 + 10_000 + 5_000 + 20 + 2
