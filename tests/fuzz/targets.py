"""All targets, by their names."""

from tests.fuzz.client import client_bytes, client_messages
from tests.fuzz.connections import connection_bytes, connection_messages, connections_together
from tests.fuzz.crafted import journal_content, snapshot_content
from tests.fuzz.damage import journal_bytes, snapshot_bytes
from tests.fuzz.driver import Target

TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        connection_bytes,
        connection_messages,
        connections_together,
        client_bytes,
        client_messages,
        journal_bytes,
        journal_content,
        snapshot_bytes,
        snapshot_content,
    )
}
