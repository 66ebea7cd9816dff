"""Tests of consistency and of durability are tested: with each fault in daemon or client one of them fails (K3)."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from tests.consistency import faults
from tests.consistency.faults import Fault

ROOT = Path(__file__).parents[1]
LIMIT = 100  # seconds for one test in a process of its own

APPLIED_TWICE = "assert 'mine' == 'newer'"
APPLIED_LATE = "assert 'mine' == 'old'"

# The test, where no file is named one in test_exactly_once.py, and what it has to say: anything else is a mistake in
# the fault.
NOTICED_BY: dict[Fault, tuple[str, str]] = {
    faults.nothing_remembered: ("test_set[nothing]", APPLIED_TWICE),
    faults.fingerprints_ignored: ("test_two_clients_in_one_session_lose_nothing", "('app.join', 'b'): 100"),
    faults.done_not_replayed: ("test_set[kill]", APPLIED_TWICE),
    faults.done_not_in_snapshots: ("test_set[snapshot_and_kill]", APPLIED_TWICE),
    faults.done_told_before_durable: (
        "test_what_was_remembered_is_not_told_before_it_is_durable",
        "where False = isinstance(b'",
    ),
    faults.writes_without_effect_not_remembered: ("test_a_late_copy[set of what is there-last]", APPLIED_LATE),
    faults.oldest_not_remembered: ("test_a_late_copy[set-and went on]", APPLIED_LATE),
    faults.not_after_ignored: ("test_given_up_while_the_daemon_was_stopped", APPLIED_LATE),
    faults.heads_swapped: ("test_many_at_once_get_their_own_answers", "assert ['of sender1'"),
    faults.boot_not_compared: (
        "server/test_segment.py::test_a_batch_in_front_of_a_good_one_was_whole_unless_power_was_lost",
        "DID NOT RAISE",
    ),
    faults.failed_sync_ignored: (
        "server/test_app.py::test_a_disk_that_fails_ends_it_at_once_and_nothing_is_answered[always]",
        "AssertionError: still not so after",
    ),
    faults.directory_not_locked: (
        "server/test_datadir.py::test_a_full_disk_does_not_keep_from_the_lock",
        "DID NOT RAISE",
    ),
    faults.new_number_for_each_attempt: ("test_set[nothing]", APPLIED_TWICE),
    faults.lost_session_ignored: ("test_in_a_session_that_has_expired", "DID NOT RAISE"),
    faults.sessions_not_waited_for: (
        "client/test_attempts.py::"
        "test_without_a_session_a_write_is_not_sent_to_a_server_that_may_give_one[set-None-blocking]",
        "DID NOT RAISE",
    ),
    faults.writes_without_a_number_repeated: (
        "client/test_attempts.py::test_what_becomes_of_a_call[unknown-no answer-set-blocking]",
        "DID NOT RAISE",
    ),
    faults.dead_connections_written_to: (
        "client/test_attempts.py::test_what_becomes_of_a_call[lost-broken before it is sent-set-blocking]",
        "statestore.errors.Uncertain",
    ),
    faults.oldest_passes_the_unanswered: (
        "test_one_without_an_answer_while_others_have_theirs",
        "statestore.errors.Uncertain",
    ),
    faults.reply_taken_by_whoever_is_next: (
        "test_the_answer_to_a_call_that_was_given_up_reaches_nobody",
        "assert ['of ann'",
    ),
}


@pytest.mark.parametrize("fault", NOTICED_BY, ids=lambda fault: fault.__name__)
def test_a_fault_is_noticed(fault: Fault) -> None:
    test, complaint = NOTICED_BY[fault]
    path = test if "::" in test else f"test_exactly_once.py::{test}"
    command = [sys.executable, "-m", "pytest", "-p", "tests.consistency.faulty", f"--fault={fault.__name__}"]
    command += ["-q", "-p", "no:cacheprovider", f"tests/{path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert "1 failed" in done.stdout
    assert complaint in done.stdout


def test_every_fault_is_tried() -> None:
    in_module = {
        fault for _, fault in inspect.getmembers(faults, inspect.isfunction) if fault.__module__ == faults.__name__
    }
    assert in_module - {faults.sessions_end_soon, faults.one_session_at_a_time} == NOTICED_BY.keys()
