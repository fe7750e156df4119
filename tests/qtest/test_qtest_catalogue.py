"""Devices by QEMU's names: what they report, where they are put, what is refused."""

import pytest

from iommu_emu.pci.config_space import ConfigSpace
from iommu_emu.qtest.catalogue import Catalogue
from iommu_emu.qtest.options import OptionError, properties
from iommu_emu.qtest.q35 import Q35

CAP, ECAP = 0x80D2_008C_222F_0606, 0xF0_0F4A


@pytest.fixture
def board():
    return Q35(16 << 20)


@pytest.fixture
def catalogue(board):
    return Catalogue(board)


def make(catalogue, text):
    return catalogue.make(properties(text, "driver"))


@pytest.mark.parametrize(
    ("options", "cap", "ecap"),
    [
        ("", CAP, ECAP),
        (",caching-mode=on", CAP | 1 << 7, ECAP),
        (",aw-bits=39", 0x80D2_008C_2226_0206, ECAP),
        (",aw-bits=48", CAP, ECAP),
        (",intremap=on", CAP, ECAP),
        (",intremap=auto,eim=auto", CAP, ECAP),
        (",intremap=off", CAP, 0xF42),
        (",eim=on", CAP, ECAP | 1 << 4),
        (",x-buggy-eim=on", CAP, ECAP | 1 << 4),
        (",snoop-control=on", CAP, ECAP | 1 << 7),
        (",dma-drain=off", CAP & ~(3 << 54), ECAP),
        (",pt=off", CAP, ECAP & ~(1 << 6)),
        (",scalable-mode=off,pasid-bits=0,device-iotlb=off,dma-translation=on", CAP, ECAP),
        (",fs1gp=off,stale-tm=on,version=1", CAP, ECAP),
    ],
)
def test_catalogue_intel_iommu_reports(board, catalogue, options, cap, ecap):
    make(catalogue, f"intel-iommu{options}")
    assert board.read(0xFED9_0000, 4) == (0x10).to_bytes(4, "little")
    assert int.from_bytes(board.read(0xFED9_0008, 8), "little") == cap
    assert int.from_bytes(board.read(0xFED9_0010, 8), "little") == ecap


@pytest.mark.parametrize(
    ("option", "feature"),
    [
        ("intel-iommu,scalable-mode=on", "scalable mode (ECAP.SMTS) is not implemented"),
        ("intel-iommu,x-scalable-mode=on", "scalable mode (ECAP.SMTS) is not implemented"),
        ("intel-iommu,fsts=on", "first-stage translation (ECAP.FSTS) is not implemented"),
        ("intel-iommu,x-flts=on", "first-stage translation (ECAP.FSTS) is not implemented"),
        ("intel-iommu,pasid-bits=8", "PASID support (ECAP.PASID) is not implemented"),
        ("intel-iommu,svm=on", "the page request interface (ECAP.PRS) is not implemented"),
        ("intel-iommu,device-iotlb=on", "ATS (device-TLBs) is not implemented"),
        ("intel-iommu,dma-translation=off", "a unit that only remaps interrupts is not"),
        ("amd-iommu,xtsup=on", "x2APIC support (EFR.XTSup) is not implemented"),
        ("amd-iommu,device-iotlb=on", "ATS (device-TLBs) is not implemented"),
        ("amd-iommu,intremap=off", "the device table decides"),
    ],
)
def test_catalogue_refuses_what_the_unit_does_not_do(catalogue, option, feature):
    with pytest.raises(OptionError) as caught:
        make(catalogue, option)
    assert feature in str(caught.value)
    driver, _, wanted = option.partition(",")
    name, _, value = wanted.partition("=")
    assert str(caught.value).startswith(f"Property '{driver}.{name}' cannot be '{value}': ")


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("bogus", "'bogus' is not a valid device model name"),
        ("intel-iommu,bogus=1", "Property 'intel-iommu.bogus' not found"),
        ("intel-iommu,addr=3", "Property 'intel-iommu.addr' not found"),
        ("intel-iommu,aw-bits=46", "supported values for aw-bits are: 39, 48"),
        ("intel-iommu,aw-bits=x", "Parameter 'aw-bits' expects integer"),
        ("intel-iommu,caching-mode=1", "Parameter 'caching-mode' expects 'on' or 'off'"),
        ("intel-iommu,eim=on,intremap=off", "eim=on cannot be selected without intremap=on"),
        ("amd-iommu,bogus=1", "Property 'amd-iommu.bogus' not found"),
        ("edu,bogus=1", "Property 'edu.bogus' not found"),
        ("edu,dma_mask=x", "Parameter 'dma_mask' expects integer"),
        ("edu,bus=pcie.1", "Bus 'pcie.1' not found"),
        ("edu,addr=20.0", "Property 'edu.addr' doesn't take value '20.0'"),
        ("edu,addr=4.8", "Property 'edu.addr' doesn't take value '4.8'"),
        ("edu,addr=1f.0", "PCI: slot 31 function 0 not available for edu, in use by lpc"),
        ("edu,addr=0.1", "PCI: single function device can't be populated in function 0.1"),
        ("edu,romfile=x", "Property 'edu.romfile' not found"),
    ],
)
def test_catalogue_refusal(catalogue, option, reason):
    with pytest.raises(OptionError) as caught:
        make(catalogue, option)
    assert reason in str(caught.value)


def test_catalogue_function_0_that_says_it_is_alone_must_be(catalogue):
    make(catalogue, "edu,addr=4.1,romfile=")
    make(catalogue, "edu,addr=4.2")
    with pytest.raises(OptionError, match=r"PCI: 4\.0 indicates single function, but 4\.1 is"):
        make(catalogue, "edu,addr=4.0")
    make(catalogue, "edu,addr=4.0,multifunction=on")


def test_catalogue_refused_device_leaves_nothing(board, catalogue):
    with pytest.raises(OptionError):
        make(catalogue, "edu,addr=4.0,bogus=1")
    assert 4 << 3 not in board.bus().functions
    assert catalogue.made == []


def test_catalogue_ids_are_unique(catalogue):
    make(catalogue, "edu,id=a")
    with pytest.raises(OptionError, match="Duplicate ID 'a' for device"):
        make(catalogue, "edu,id=a")


@pytest.mark.parametrize("second", ["intel-iommu", "amd-iommu"])
def test_catalogue_has_one_iommu(catalogue, second):
    make(catalogue, "intel-iommu")
    with pytest.raises(OptionError, match="there is an IOMMU already"):
        make(catalogue, second)


def test_catalogue_machine_none_takes_no_device():
    with pytest.raises(OptionError, match="No 'PCI' bus found for device 'edu'"):
        make(Catalogue(None), "edu")


@pytest.mark.parametrize(
    ("address", "devfn"), [("4", 0x20), ("04.0", 0x20), ("0x4.7", 0x27), ("1e.1", 0xF1)]
)
def test_catalogue_address(catalogue, address, devfn):
    assert make(catalogue, f"edu,bus=pcie.0,addr={address}").what.address == devfn


@pytest.mark.parametrize(("reserved", "devfn"), [(set(), 0x08), ({1}, 0x10), ({1, 2}, 0x18)])
def test_catalogue_first_free_place(board, reserved, devfn):
    catalogue = Catalogue(board, frozenset(reserved))
    assert make(catalogue, "iommu-testdev").what.address == devfn
    assert make(catalogue, "edu").what.address == devfn + 8


def test_catalogue_bridges_make_buses_by_their_ids(catalogue):
    port = make(catalogue, "pcie-root-port,id=port,chassis=1,slot=2,addr=3.0").what
    bridge = make(catalogue, "pcie-pci-bridge,id=bridge,bus=port").what
    edu = make(catalogue, "edu,bus=bridge,addr=2.0").what
    assert bridge.bus is port.secondary
    assert edu.bus is bridge.secondary
    assert edu.devfn == 2 << 3


def test_catalogue_bus_numbers_are_left_to_software(catalogue):
    port = make(catalogue, "pcie-root-port,id=port").what
    assert (port.secondary_number, port.subordinate_number) == (0, 0)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("edu,bus=port,addr=1.0", "slot 1 is not valid for edu"),
        ("edu,bus=edu0", "Bus 'edu0' not found"),
        ("pcie-root-port,bus=port", "Device 'pcie-root-port' can only go on pcie.0"),
        ("pcie-root-port,chassis=x", "Parameter 'chassis' expects integer"),
    ],
)
def test_catalogue_bridge_refusal(catalogue, option, reason):
    make(catalogue, "pcie-root-port,id=port")
    make(catalogue, "edu,id=edu0")
    with pytest.raises(OptionError) as caught:
        make(catalogue, option)
    assert reason in str(caught.value)


def test_catalogue_multifunction_bit(catalogue):
    edu = make(catalogue, "edu,addr=4.0,multifunction=on").what
    assert edu.config.get(0x0E, 1) == 0x80


def test_catalogue_edu_dma_mask(catalogue):
    assert make(catalogue, "edu").what.dma_mask == 0x0FFF_FFFF
    assert make(catalogue, "edu,dma_mask=0xffffffff").what.dma_mask == 0xFFFF_FFFF


def test_catalogue_amd_iommu_brings_its_function(board, catalogue):
    unit = make(catalogue, "amd-iommu,dma-remap=on").what
    function = board.machine.fabric.find(0, unit.config.device_id)
    config: ConfigSpace = function.config
    assert config.get(0x00, 4) == 0x1419_1022
    assert config.get(0x09, 3) == 0x080600
    assert config.get(0x40, 1) == 0x0F
    assert config.get(0x44, 8) & ~0x3FFF == 0xFED8_0000
    assert config.find(0x05) is not None


def test_catalogue_amd_iommu_reports_what_it_does(board, catalogue):
    make(catalogue, "amd-iommu")
    assert board.read(0xFED8_0030, 8) == (0x841).to_bytes(8, "little")
