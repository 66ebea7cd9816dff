"""What an operator reads of them, and a supervisor."""

from pathlib import Path

from statestored.errors import DamagedFile, DiskFailed, Exit, NoRoom, TooNew


def test_damage_names_the_file_and_the_place() -> None:
    error = DamagedFile(Path("/data/00000001.snapshot"), "there is no whole block", 4711)
    assert str(error) == "/data/00000001.snapshot is damaged at byte 4711: there is no whole block"
    assert (error.path.name, error.offset) == ("00000001.snapshot", 4711)


def test_a_file_of_a_later_release_names_both_formats() -> None:
    assert str(TooNew(Path("/data/store.json"), "format 3", 1)) == (
        "/data/store.json has format 3, but this release knows formats up to 1: start a newer one"
    )


def test_a_failed_disk_says_what_failed() -> None:
    assert "Input/output error" in str(DiskFailed(OSError(5, "Input/output error")))


def test_a_full_disk_is_no_failed_one() -> None:
    """One is waited for, the other never tried again."""
    assert not issubclass(NoRoom, DiskFailed)
    assert not issubclass(DiskFailed, OSError)


def test_each_end_has_an_exit_code_of_its_own() -> None:
    """Supervisors are configured with them, so they stay."""
    assert {code.name: int(code) for code in Exit} == {
        "STOPPED": 0,
        "CANNOT_START": 1,
        "USAGE": 2,
        "DAMAGED": 3,
        "DISK_FAILED": 4,
    }
