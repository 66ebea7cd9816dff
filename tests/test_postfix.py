"""No mail is lost with a real Postfix in front: what comes in an outage waits in its queue."""

from pathlib import Path

from tests.mail.run import run_behind_postfix

CONVERSATIONS = 12
PUT_OFF = "said: 451 4.3.0 state store unavailable, try again later"


def test_mail_waits_in_the_queue_and_completes_when_it_is_flushed(tmp_path: Path) -> None:
    outcome = run_behind_postfix(tmp_path, CONVERSATIONS, every=6, seed=1, outage=3.0)
    assert outcome.faults == []
    assert set(outcome.replies) == {250, 451}
    assert outcome.kills >= 2
    assert len(outcome.deferred) == CONVERSATIONS
    reasons = [recipient["delay_reason"] for mail in outcome.deferred for recipient in mail["recipients"]]
    assert [reason for reason in reasons if PUT_OFF not in reason] == []
