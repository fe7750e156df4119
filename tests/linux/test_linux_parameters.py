import pytest

from iommu_emu.linux.parameters import Parameters


@pytest.mark.parametrize(
    ("text", "attribute", "value"),
    [
        ("iommu.strict=1", "strict", True),
        ("iommu.strict=0", "strict", False),
        ("iommu.strict=y", "strict", True),
        ("iommu.strict=off", "strict", False),
        ("iommu.strict=on", "strict", True),
        ("iommu.strict=yes", "strict", True),
        ("intel_iommu=on,strict", "strict", True),
        ("amd_iommu=fullflush", "strict", True),
        ("quiet", "strict", None),
        ("iommu.passthrough=1", "passthrough", True),
        ("iommu=pt", "passthrough", True),
        ("iommu=nopt", "passthrough", False),
        ("iommu.forcedac=1", "forcedac", True),
        ("intel_iommu=off", "intel", False),
        ("intel_iommu=off", "amd", True),
        ("amd_iommu=off", "amd", False),
        ("iommu=off", "off", True),
        ("intel_iommu=on", "intel", True),
        ("quiet", "intel", None),
        ("pci=nomsi,noats", "ats", False),
        ("pci=nomsi", "ats", True),
        ("intel_iommu=nobounce", "bounce", False),
        ("swiotlb=force", "swiotlb", "force"),
        ("swiotlb=512,4,noforce", "swiotlb", "noforce"),
        ("swiotlb=512", "pool_size", 1 << 20),
        ("swiotlb=129", "pool_size", 1 << 19),
        ("swiotlb=0", "pool_size", 0),
    ],
)
def test_parameters_mean(text, attribute, value):
    assert getattr(Parameters.parse(text), attribute) == value


def test_parameters_later_one_overrides_earlier():
    assert Parameters.parse("iommu.passthrough=1 iommu=nopt").passthrough is False


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("iommu.strict=maybe", "Malformed early option 'iommu.strict'"),
        ("iommu.strict", "Malformed early option 'iommu.strict'"),
        ("iommu", "Malformed early option 'iommu'"),
        ("intel_iommu=fast", "DMAR: Unknown option - 'fast'"),
        ("amd_iommu=fast", "AMD-Vi: Unknown option - 'fast'"),
        (
            "intel_iommu=strict",
            "DMAR: intel_iommu=strict deprecated; use iommu.strict=1 instead",
        ),
        ("pci=noats", "PCIe: ATS is disabled"),
    ],
)
def test_parameters_say_what_is_odd(text, line):
    assert Parameters.parse(text).log == (line,)


def test_parameters_malformed_value_changes_nothing():
    assert Parameters.parse("iommu.strict=maybe").strict is None


def test_parameters_of_other_subsystems_are_passed_over():
    assert Parameters.parse("root=/dev/vda quiet").log == ()
