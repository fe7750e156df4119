import pytest

from iommu_emu.guest.cpio import Archive


def entries(data):
    """Read an archive as its format says: (name, mode, content, device) up to the trailer."""
    found, at = [], 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        size, name_size = fields[6], fields[11]
        name = data[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0")
        body = (at + 110 + name_size + 3) & ~3
        at = (body + size + 3) & ~3
        if name == b"TRAILER!!!\0":
            assert at == len(data)
            return found
        device = (fields[9], fields[10])
        found.append((name[:-1].decode(), fields[1], data[body : body + size], device))


def test_cpio_file_is_a_header_of_110_bytes_a_name_and_data_in_steps_of_4():
    archive = Archive()
    archive.add_file("init", b"hello", 0o755)
    header = b"070701" + b"".join(
        b"%08X" % field for field in (1, 0o100755, 0, 0, 1, 0, 5, 0, 0, 0, 0, 5, 0)
    )
    assert archive.build().startswith(header + b"init\0" + b"\0" + b"hello\0\0\0" + b"070701")


def test_cpio_makes_the_folders_above_a_file_once():
    archive = Archive()
    archive.add_file("/etc/a/one", b"1")
    archive.add_file("etc/a/two", b"22")
    assert [(name, mode) for name, mode, _, _ in entries(archive.build())] == [
        ("etc", 0o40755),
        ("etc/a", 0o40755),
        ("etc/a/one", 0o100644),
        ("etc/a/two", 0o100644),
    ]


@pytest.mark.parametrize("size", range(9))
def test_cpio_content_of_any_length_comes_back(size):
    archive = Archive()
    archive.add_file("x" * size + "y", bytes(range(size)))
    assert entries(archive.build())[0][2] == bytes(range(size))


def test_cpio_link_holds_its_target():
    archive = Archive()
    archive.add_link("sbin", "bin")
    assert entries(archive.build()) == [("sbin", 0o120777, b"bin", (0, 0))]


def test_cpio_device_has_its_numbers():
    archive = Archive()
    archive.add_character_device("dev/console", 5, 1)
    assert entries(archive.build())[1] == ("dev/console", 0o20600, b"", (5, 1))


def test_cpio_is_the_same_every_time():
    def build():
        archive = Archive()
        archive.add_file("a/b", b"c")
        return archive.build()

    assert build() == build()


def test_cpio_refuses_the_root_as_a_name():
    with pytest.raises(ValueError, match=r"^path must name something, not the root$"):
        Archive().add_file("/", b"")
