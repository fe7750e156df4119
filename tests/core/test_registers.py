"""The register table: every field, its place, access kind and reset value (VT-d 2, 3).

SPECIFICATION below is copied from the specification's tables by hand. The exported table must say
the same, and the unit must behave as it says.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from core_bench import BASE, Bench

from iommu_emu import core
from iommu_emu.core import FieldAccess, Reset, Vendor

# register: fields as NAME high:low KIND, "=1" for a reset value of 1.
SPECIFICATION = {
    "VER": "MIN 3:0 RO, MAX 7:4 RO",
    "CAP": "ND 2:0 RO, AFL 3:3 RO, RWBF 4:4 RO, PLMR 5:5 RO, PHMR 6:6 RO, CM 7:7 RO,"
    "SAGAW 12:8 RO, MGAW 21:16 RO, ZLR 22:22 RO, FRO 33:24 RO, SSLPS 37:34 RO, PSI 39:39 RO,"
    "NFR 47:40 RO, MAMV 53:48 RO, DWD 54:54 RO, DRD 55:55 RO, FS1GP 56:56 RO, PI 59:59 RO,"
    "FS5LP 60:60 RO, ECMDS 61:61 RO, ESIRTPS 62:62 RO, ESRTPS 63:63 RO",
    "ECAP": "C 0:0 RO, QI 1:1 RO, DT 2:2 RO, IR 3:3 RO, EIM 4:4 RO, PT 6:6 RO, SC 7:7 RO,"
    "IRO 17:8 RO, MHMV 23:20 RO, MTS 25:25 RO, NEST 26:26 RO, PRS 29:29 RO, ERS 30:30 RO,"
    "SRS 31:31 RO, NWFS 33:33 RO, EAFS 34:34 RO, PSS 39:35 RO, PASID 40:40 RO, DIT 41:41 RO,"
    "PDS 42:42 RO, SMTS 43:43 RO, VCS 44:44 RO, SSADS 45:45 RO, SSTS 46:46 RO, FSTS 47:47 RO,"
    "SMPWCS 48:48 RO, RPS 49:49 RO, TDXCS 50:50 RO, PMS 51:51 RO, ADMS 52:52 RO,"
    "RPRIVS 53:53 RO, HPTS 55:55 RO, PTRS 56:56 RO, SSIRWS 57:57 RO, SMS 58:58 RO,"
    "HPT1GPS 59:59 RO, RDTS 60:60 RO, EIMER 61:61 RO, IRREQ 62:62 RO",
    "GCMD": "TE 31:31 WO, SRTP 30:30 WO, WBF 27:27 WO, QIE 26:26 WO, IRE 25:25 WO,"
    "SIRTP 24:24 WO, CFI 23:23 WO",
    "GSTS": "TES 31:31 RO, RTPS 30:30 RO, WBFS 27:27 RO, QIES 26:26 RO, IRES 25:25 RO,"
    "IRTPS 24:24 RO, CFIS 23:23 RO",
    "RTADDR": "SSIRWE 7:7 RW, TTM 11:10 RW, RTA 63:12 RW",
    "CCMD": "DID 15:0 RW, SID 31:16 WO, FM 33:32 WO, CAIG 60:59 RO, CIRG 62:61 RW, ICC 63:63 RW",
    "FSTS": "PFO 0:0 RW1CS, PPF 1:1 ROS, IQE 4:4 RW1CS, ICE 5:5 RW1CS, ITE 6:6 RW1CS,FRI 15:8 ROS",
    "FECTL": "IP 30:30 RO, IM 31:31 RW =1",
    "FEDATA": "IMD 15:0 RW",
    "FEADDR": "MA 31:2 RW",
    "FEUADDR": "MUA 31:0 RW",
    "PMEN": "PRS 0:0 RO, EPM 31:31 RW",
    "PLMBASE": "PLMB 31:0 RWL",
    "PLMLIMIT": "PLML 31:0 RWL",
    "PHMBASE": "PHMB 63:0 RWL",
    "PHMLIMIT": "PHML 63:0 RWL",
    "IQH": "QH 18:4 RO",
    "IQT": "QT 18:4 RW",
    "IQA": "QS 2:0 RW, DW 11:11 RW, IQA 63:12 RW",
    "ICS": "IWC 0:0 RW1CS",
    "IECTL": "IP 30:30 RO, IM 31:31 RW =1",
    "IEDATA": "IMD 15:0 RW",
    "IEADDR": "MA 31:2 RW",
    "IEUADDR": "MUA 31:0 RW",
    "IQERCD": "IQEI 3:0 ROS, ITESID 47:32 ROS, ICESID 63:48 ROS",
    "IRTA": "S 3:0 RW, EIME 11:11 RW, IRTA 63:12 RW",
    "IVA": "AM 5:0 WO, IH 6:6 WO, ADDR 63:12 WO",
    "IOTLB": "DID 47:32 RW, DW 48:48 RW, DR 49:49 RW, IAIG 58:57 RO, IIRG 61:60 RW, IVT 63:63 RW",
    "FRCD": "FI 63:12 ROS, SID 79:64 ROS, T2 92:92 ROS, PRIV 93:93 ROS, EXE 94:94 ROS,"
    "PP 95:95 ROS, FR 103:96 ROS, PV 123:104 ROS, AT 125:124 ROS, T1 126:126 ROS,"
    "F 127:127 RW1CS",
}

# Fields that need a capability to be there: capability bits in CAP or ECAP, any of which is enough
# (every one, for a tuple).
NEEDS: dict[str, list[str] | tuple[str, ...]] = {
    "GCMD.WBF": ["CAP.RWBF"],
    "GSTS.WBFS": ["CAP.RWBF"],
    **{f"{r}.{f}": ["ECAP.QI"] for r, f in (("GCMD", "QIE"), ("GSTS", "QIES"), ("FSTS", "IQE"))},
    **{f"GCMD.{f}": ["ECAP.IR"] for f in ("IRE", "SIRTP", "CFI")},
    **{f"GSTS.{f}": ["ECAP.IR"] for f in ("IRES", "IRTPS", "CFIS")},
    "RTADDR.SSIRWE": ["ECAP.SSIRWS"],
    "FSTS.ICE": ["ECAP.DT"],
    "FSTS.ITE": ["ECAP.DT"],
    "FEUADDR.MUA": ["ECAP.EIM"],
    "PMEN.PRS": ["CAP.PLMR", "CAP.PHMR"],
    "PMEN.EPM": ["CAP.PLMR", "CAP.PHMR"],
    "PLMBASE.PLMB": ["CAP.PLMR"],
    "PLMLIMIT.PLML": ["CAP.PLMR"],
    "PHMBASE.PHMB": ["CAP.PHMR"],
    "PHMLIMIT.PHML": ["CAP.PHMR"],
    **{
        f"{r}.{f}": ["ECAP.QI"]
        for r, f in (
            ("IQH", "QH"),
            ("IQT", "QT"),
            ("IQA", "QS"),
            ("IQA", "DW"),
            ("IQA", "IQA"),
            ("ICS", "IWC"),
            ("IECTL", "IP"),
            ("IECTL", "IM"),
            ("IEDATA", "IMD"),
            ("IEADDR", "MA"),
            ("IQERCD", "IQEI"),
        )
    },
    "IEUADDR.MUA": ("ECAP.QI", "ECAP.EIM"),
    "IQERCD.ITESID": ["ECAP.DT"],
    "IQERCD.ICESID": ["ECAP.DT"],
    "IRTA.S": ["ECAP.IR"],
    "IRTA.IRTA": ["ECAP.IR"],
    "IRTA.EIME": ["ECAP.EIM"],
    **{f"FRCD.{f}": ["ECAP.PASID"] for f in ("PRIV", "EXE", "PP", "PV")},
    "FRCD.AT": ["ECAP.DT"],
}

OFFSETS = {  # fixed ones (2.2); IVA, IOTLB and FRCD are relative
    "VER": 0x00, "CAP": 0x08, "ECAP": 0x10, "GCMD": 0x18, "GSTS": 0x1C, "RTADDR": 0x20,
    "CCMD": 0x28, "FSTS": 0x34, "FECTL": 0x38, "FEDATA": 0x3C, "FEADDR": 0x40, "FEUADDR": 0x44,
    "PMEN": 0x64, "PLMBASE": 0x68, "PLMLIMIT": 0x6C, "PHMBASE": 0x70, "PHMLIMIT": 0x78,
    "IQH": 0x80, "IQT": 0x88, "IQA": 0x90, "ICS": 0x9C, "IECTL": 0xA0, "IEDATA": 0xA4,
    "IEADDR": 0xA8, "IEUADDR": 0xAC, "IQERCD": 0xB0, "IRTA": 0xB8, "IVA": 0, "IOTLB": 8, "FRCD": 0,
}  # fmt: skip
WIDE = {"CAP", "ECAP", "RTADDR", "CCMD", "PHMBASE", "PHMLIMIT", "IQH", "IQT", "IQA", "IQERCD",
        "IRTA", "IVA", "IOTLB"}  # fmt: skip

ROWS = {row.name: row for row in core.registers(Vendor.VTD)}
FIELDS = {
    f"{core.registers(Vendor.VTD)[row.register].name}.{row.name}": row
    for row in core.fields(Vendor.VTD)
}


@dataclass(frozen=True)
class Field:
    register: str
    name: str
    high: int
    low: int
    access: str
    reset: int

    @property
    def mask(self) -> int:
        return (1 << self.high + 1) - (1 << self.low)

    def __str__(self) -> str:
        return f"{self.register}.{self.name}"


def parse() -> list[Field]:
    found = []
    for register, text in SPECIFICATION.items():
        for item in text.split(","):
            name, place, access, *reset = item.split()
            high, low = map(int, place.split(":"))
            found.append(Field(register, name, high, low, access, 1 if reset else 0))
    return found


ALL = parse()
each_field = pytest.mark.parametrize("field", ALL, ids=str)


# ---- the exported table ---------------------------------------------------------------------


def test_registers_table_has_exactly_these_registers() -> None:
    assert set(ROWS) == set(SPECIFICATION)


@pytest.mark.parametrize("name", SPECIFICATION)
def test_registers_table_row(name: str) -> None:
    row = ROWS[name]
    base = {"IVA": 1, "IOTLB": 1, "FRCD": 2}.get(name, 0)
    width = 128 if name == "FRCD" else 64 if name in WIDE else 32
    assert (row.offset, row.width, row.base) == (OFFSETS[name], width, base)
    assert (row.count, row.stride) == ((256, 16) if name == "FRCD" else (1, 0))


def test_registers_table_has_exactly_these_fields() -> None:
    assert set(FIELDS) == {str(field) for field in ALL}


@each_field
def test_registers_table_field(field: Field) -> None:
    row = FIELDS[str(field)]
    assert (row.high, row.low) == (field.high, field.low)
    assert row.access is FieldAccess[field.access]
    assert row.reset == field.reset


# ---- a unit with every capability -----------------------------------------------------------


def everything() -> Bench:
    """A unit whose capability words have every bit that a field may need."""
    bench = Bench(
        device_tlb=True,
        write_buffer_flush=True,
        interrupt_remapping=True,
        extended_interrupts=True,
        protected_shift=12,
        window=0x4000,
        fault_records=256,
        fault_offset=0x1000,
    )
    ecap = bench.config["ecap"] | 1 << 57 | 1 << 40
    config = bench.config | {"ecap": ecap}
    config["unit"] = config["unit"] | {"base": BASE + 0x10_0000}
    bench.unit = bench.machine.create_vtd(config)
    return bench


@pytest.fixture
def full() -> Bench:
    return everything()


def raw_read(bench: Bench, name: str, index: int = 0) -> int:
    """Read a whole register by dwords."""
    row = ROWS[name]
    at = bench.unit.register_offset(row.index) + 16 * index
    return sum(bench.unit.mmio_read(at + 4 * n, 4) << 32 * n for n in range(row.width // 32))


def raw_write(bench: Bench, name: str, value: int, index: int = 0) -> None:
    row = ROWS[name]
    at = bench.unit.register_offset(row.index) + 16 * index
    for n in range(row.width // 32):
        bench.unit.mmio_write(at + 4 * n, 4, value >> 32 * n & 0xFFFF_FFFF)


# Writing these starts something; what follows is in the tests of that command. EPM locks the
# protected-memory registers, and PRS follows it.
COMMANDS = {"GCMD", "CCMD.ICC", "IOTLB.IVT", "PMEN.EPM"}


def stored(field: Field) -> int:
    """Bits of a writable field that keep what is written: N is 11 here (2.11)."""
    return field.mask & ~0xFFF if field.register[:3] in ("PLM", "PHM") else field.mask


def writable(field: Field) -> bool:
    starts = field.register in COMMANDS or str(field) in COMMANDS
    return field.access in ("RW", "RWL") and not starts


@each_field
def test_registers_field_resets(full: Bench, field: Field) -> None:
    value = (raw_read(full, field.register) & field.mask) >> field.low
    if field.register in ("VER", "CAP", "ECAP"):
        return  # what the configuration says: test_registers_report_the_configuration
    assert value == (field.reset if field.access != "WO" else 0)


@each_field
def test_registers_field_takes_writes_as_its_kind_says(full: Bench, field: Field) -> None:
    """Ones, zeros and a pattern into one field, the others left as they read."""
    if field.register == "GCMD" or str(field) in COMMANDS:
        raw_write(full, field.register, 0)
        assert raw_read(full, field.register) & field.mask == 0
        return
    before = raw_read(full, field.register)
    for value in (field.mask, 0, field.mask & 0x5A5A_5A5A_5A5A_5A5A_5A5A_5A5A_5A5A_5A5A):
        others = before & ~field.mask
        raw_write(full, field.register, others | value)
        expected = value & stored(field) if writable(field) else before & field.mask
        expected = 0 if field.access == "WO" else expected
        assert raw_read(full, field.register) & field.mask == expected


@pytest.mark.parametrize("name", SPECIFICATION)
def test_registers_reserved_bits_read_0(full: Bench, name: str) -> None:
    known = sum(field.mask for field in ALL if field.register == name)
    if name not in ("GCMD", "CCMD", "IOTLB", "PMEN"):
        raw_write(full, name, (1 << ROWS[name].width) - 1)
    assert raw_read(full, name) & ~known == 0


@pytest.mark.parametrize("name", sorted(WIDE - {"CAP", "ECAP", "IQERCD", "IQH"}))
def test_registers_wide_ones_take_quadwords_and_dwords(full: Bench, name: str) -> None:
    kept = sum(stored(field) for field in ALL if field.register == name and writable(field))
    at = full.unit.register_offset(ROWS[name].index)
    value = 0x1234_5678_9ABC_DEF0 & ~(1 << 63)
    full.unit.mmio_write(at, 8, value)
    assert full.unit.mmio_read(at, 8) & kept == value & kept
    full.unit.mmio_write(at, 4, 0x0FED_CBA9)
    assert full.unit.mmio_read(at, 4) == 0x0FED_CBA9 & kept & 0xFFFF_FFFF
    assert full.unit.mmio_read(at + 4, 4) & kept >> 32 == (value & kept) >> 32
    full.unit.mmio_write(at + 4, 4, 0x7654_3210)
    assert full.unit.mmio_read(at, 8) & kept == 0x7654_3210_0FED_CBA9 & kept


def test_registers_dword_neighbours_share_a_quadword_access(full: Bench) -> None:
    full.unit.mmio_write(0x40, 8, 0x1111_2222_3333_4444)  # FEADDR and FEUADDR
    assert full.read("FEADDR") == 0x3333_4444
    assert full.read("FEUADDR") == 0x1111_2222
    assert full.unit.mmio_read(0x40, 8) == 0x1111_2222_3333_4444


# ---- access rules (2.1) ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0x20, 1), (0x20, 2), (0x20, 3), (0x20, 16), (0x20, 0), (0x22, 4), (0x21, 8), (0x24, 8)],
)
def test_registers_take_aligned_dwords_and_quadwords_only(
    full: Bench, offset: int, size: int
) -> None:
    full.write("RTADDR", 0x0000_0012_3456_7000)
    full.unit.mmio_write(offset, size, 0)
    assert full.read("RTADDR") == 0x0000_0012_3456_7000
    assert full.unit.mmio_read(offset, size) == 0


@pytest.mark.parametrize("offset", [0x004, 0x030, 0x048, 0x058, 0x060, 0x098, 0x0C0, 0x0D8, 0x2FC])
def test_registers_reserved_offsets_read_0_and_ignore_writes(full: Bench, offset: int) -> None:
    full.unit.mmio_write(offset, 4, 0xFFFF_FFFF)
    assert full.unit.mmio_read(offset, 4) == 0


@pytest.mark.parametrize("offset", [0x4000, 0x3FFF_FFFC, (1 << 64) - 8])
def test_registers_end_with_the_window(full: Bench, offset: int) -> None:
    full.unit.mmio_write(offset, 4, 0xFFFF_FFFF)
    assert full.unit.mmio_read(offset, 4) == 0


def test_registers_every_word_of_the_window_reads(full: Bench) -> None:
    taken = {
        full.unit.register_offset(row.index) // 4 + n + element * 4
        for row in ROWS.values()
        for element in range(row.count)
        for n in range(row.width // 32)
    }
    for word in range(0x4000 // 4):
        value = full.unit.mmio_read(4 * word, 4)
        assert word in taken or value == 0


# ---- capabilities decide what is there (1) --------------------------------------------------


@pytest.mark.parametrize("name", sorted(NEEDS))
def test_registers_field_is_absent_without_its_capability(name: str) -> None:
    field = next(field for field in ALL if str(field) == name)
    needed = NEEDS[name]
    every = dict.fromkeys(
        ("CAP.RWBF", "CAP.PLMR", "CAP.PHMR", "ECAP.QI", "ECAP.IR", "ECAP.EIM", "ECAP.DT",
         "ECAP.PASID", "ECAP.SSIRWS"), True
    )  # fmt: skip
    assert there(every, field)
    if isinstance(needed, tuple):
        for one in needed:
            assert not there(every | {one: False}, field)
    else:
        assert not there(every | dict.fromkeys(needed, False), field)
        nothing = dict.fromkeys(every, False)
        for one in needed:
            assert there(nothing | {one: True}, field)


def there(has: dict[str, bool], field: Field) -> bool:
    """Whether a unit with these capability bits has the field: it says so, and behaves so."""
    bench = Bench(protected_low=False, protected_high=False, queued_invalidation=False)
    config = dict(bench.config)
    for name, present in has.items():
        word = name.split(".")[0]
        row = FIELDS[name]
        if present:
            config[word.lower()] |= row.mask
    config["unit"] = config["unit"] | {"base": BASE + 0x10_0000}
    bench.unit = bench.machine.create_vtd(config)
    said = bench.unit.has_field(FIELDS[str(field)].index)
    if writable(field):
        raw_write(bench, field.register, field.mask)
        taken = raw_read(bench, field.register) & field.mask != 0
        assert taken is said
    if field.reset:
        assert bool(raw_read(bench, field.register) & field.mask) is said
    return said


@each_field
def test_registers_field_without_a_condition_is_always_there(field: Field) -> None:
    if str(field) not in NEEDS:
        assert FIELDS[str(field)].needs == "ALWAYS"


# ---- values ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("major", "minor"), [(1, 0), (4, 2), (15, 15)])
def test_registers_version(major: int, minor: int) -> None:
    assert Bench(major=major, minor=minor).read("VER") == major << 4 | minor


def test_registers_report_the_configuration(bench: Bench) -> None:
    assert bench.read("CAP") == bench.config["cap"]
    assert bench.read("ECAP") == bench.config["ecap"]


@pytest.mark.parametrize("name", ["VER", "CAP", "ECAP", "GSTS", "IQH", "IQERCD"])
def test_registers_read_only_ones_ignore_writes(bench: Bench, name: str) -> None:
    before = bench.read(name)
    bench.write(name, ~before & 0xFFFF_FFFF)
    assert bench.read(name) == before


@pytest.mark.parametrize("index", [0, 1, 254, 255])
def test_registers_fault_records_are_an_array(full: Bench, index: int) -> None:
    at = full.unit.register_offset(ROWS["FRCD"].index)
    assert at == 0x1000
    full.unit.mmio_write(at + 16 * index, 8, (1 << 64) - 1)
    assert full.unit.mmio_read(at + 16 * index, 8) == 0


@pytest.mark.parametrize(("iro", "fro"), [(0xF0, 0x220), (0x1000, 0x400), (0x300, 0x1FF0)])
def test_registers_are_placed_by_the_capabilities(iro: int, fro: int) -> None:
    bench = Bench(iotlb_offset=iro, fault_offset=fro, fault_records=1)
    offsets = {name: bench.unit.register_offset(row.index) for name, row in ROWS.items()}
    assert (offsets["IVA"], offsets["IOTLB"], offsets["FRCD"]) == (iro, iro + 8, fro)
    bench.enable()
    bench.translate(0x5000)
    assert bench.record(0).valid
    bench.clear_record(0)
    assert bench.read("FSTS") == 0
    bench.write("IOTLB", 1 << 63 | 1 << 60)
    assert bench.read("IOTLB") == 1 << 60 | 1 << 57


def test_registers_has_field_of_no_row_is_false(bench: Bench) -> None:
    assert not bench.unit.has_field(len(FIELDS))


# ---- reset ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Reset.WARM, Reset.POWER_ON])
@pytest.mark.parametrize("field", [f for f in ALL if writable(f)], ids=str)
def test_registers_writable_field_is_reset(full: Bench, field: Field, kind: Reset) -> None:
    raw_write(full, field.register, (1 << 64) - 1 & ~(1 << 63) if field.high < 63 else field.mask)
    full.unit.reset(kind)
    assert (raw_read(full, field.register) & field.mask) >> field.low == field.reset


def test_registers_reset_switches_everything_off(bench: Bench) -> None:
    bench.attach().map(0x5000, 0x20_0000)
    bench.enable()
    bench.enable_queue()
    bench.translate(0x5000)
    bench.unit.reset()
    assert bench.read("GSTS") == 0
    assert bench.reads(0x5000) == 0x5000
    bench.command(1 << 31)  # TE without SRTP: the latched pointer is gone
    assert bench.fault(0x5000) == 0x01


def test_registers_reset_drops_every_cache(bench: Bench) -> None:
    bench.attach().map(0x5000, 0x20_0000)
    bench.enable()
    bench.translate(0x5000)
    bench.unit.reset()
    assert all(bench.unit.entries(cache) == [] for cache in core.CacheId)


# ---- configurations that are refused --------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"major": 16}, ValueError),
        ({"minor": 16}, ValueError),
        ({"protected_shift": 11}, ValueError),
        ({"protected_shift": 33}, ValueError),
        ({"cap": 7}, ValueError),  # ND=7 is reserved
        ({"base": BASE + 0x800}, ValueError),
        ({"base": 0x10_0000}, core.OverlapError),
        ({"window": 0x1800}, ValueError),
        ({"window": 0x800}, ValueError),
        ({"window": 1 << 25}, ValueError),
        ({"host_address_width": 31}, ValueError),
        ({"host_address_width": 53}, ValueError),
        ({"fetch_granule": 32}, ValueError),
        ({"iotlb_lookup": 2}, ValueError),
        ({"cap": 0}, core.OverlapError),  # FRO=0: the fault records lie over VER
        ({"cap": 0x3FF << 24}, ValueError),  # beyond the window
        ({"cap": 0x30 << 24}, core.OverlapError),  # over IVA
    ],
    ids=str,
)
def test_registers_bad_configuration(change: dict[str, int], error: type[Exception]) -> None:
    bench = Bench()
    config = dict(bench.config)
    unit = config["unit"] | {"base": BASE + 0x10_0000}
    for name, value in change.items():
        (unit if name in unit else config)[name] = value
    with pytest.raises(error):
        bench.machine.create_vtd(config | {"unit": unit})
    # Nothing is left behind: the same place is free, and the next unit is number 1.
    good = bench.config | {"unit": unit | {"base": BASE + 0x10_0000, "window": 0x2000}}
    good["unit"] = bench.config["unit"] | {"base": BASE + 0x10_0000}
    assert bench.machine.create_vtd(good).number == 1
