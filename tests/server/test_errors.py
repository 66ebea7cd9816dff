"""What an operator reads of them."""

from pathlib import Path

from statestored.errors import DamagedFile, TooNew


def test_damage_names_the_file_and_the_place() -> None:
    error = DamagedFile(Path("/data/00000001.snapshot"), "a block's frame has a wrong checksum", 4711)
    assert str(error) == "/data/00000001.snapshot is damaged at byte 4711: a block's frame has a wrong checksum"
    assert (error.path.name, error.offset) == ("00000001.snapshot", 4711)


def test_a_file_of_a_later_release_names_both_formats() -> None:
    assert str(TooNew(Path("/data/store.json"), 3, 1)) == (
        "/data/store.json has format 3, but this release knows formats up to 1: start a newer one"
    )
