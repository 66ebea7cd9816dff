"""No mail is lost, and none handled twice, though the store is killed again and again."""

from pathlib import Path

from tests.mail.run import run_with_kills


def test_all_conversations_complete_while_the_daemon_is_killed_again_and_again(tmp_path: Path) -> None:
    outcome = run_with_kills(tmp_path, conversations=16, every=14, seed=1)
    assert outcome.faults == []
    assert set(outcome.replies) == {250, 451}
    assert outcome.kills >= 3
