"""Settings: an argument, else the environment, else the default; and what cannot be one is named."""

import os
from dataclasses import fields
from typing import Any

import pytest

from statestore import RemoteStorage, settings
from statestore.address import parse_addresses
from statestore.settings import Settings
from tests.client.servers import refused


def test_what_is_not_given_is_the_default() -> None:
    gathered = Settings.gather({})
    assert gathered == Settings(
        address=parse_addresses("127.0.0.1:7828"),
        namespace="default",
        token=None,
        tls=None,
        tls_cert=None,
        tls_key=None,
        deadline=5.0,
        write_deadline=60.0,
        pool=8,
        store_id=None,
    )


ENVIRONMENT = {
    "STATESTORE_ADDRESS": "mx.example, unix:/run/s",
    "STATESTORE_NAMESPACE": "shop",
    "STATESTORE_TOKEN": "sesame",
    "STATESTORE_TLS": "/etc/ca.pem",
    "STATESTORE_TLS_CERT": "/etc/own.pem",
    "STATESTORE_TLS_KEY": "/etc/own.key",
    "STATESTORE_DEADLINE": "2.5",
    "STATESTORE_WRITE_DEADLINE": "30",
    "STATESTORE_POOL": "4",
    "STATESTORE_STORE_ID": "s1",
}
GATHERED: dict[str, Any] = {
    "address": parse_addresses("mx.example:7828,unix:/run/s"),
    "namespace": "shop",
    "token": "sesame",
    "tls": "/etc/ca.pem",
    "tls_cert": "/etc/own.pem",
    "tls_key": "/etc/own.key",
    "deadline": 2.5,
    "write_deadline": 30.0,
    "pool": 4,
    "store_id": "s1",
}


def test_every_setting_can_come_from_the_environment() -> None:
    assert set(GATHERED) == {setting.name for setting in fields(Settings)}
    assert Settings.gather(ENVIRONMENT) == Settings(**GATHERED)


def test_an_argument_goes_before_the_environment() -> None:
    gathered = Settings.gather(ENVIRONMENT, address="other.example", token="", pool=1, tls=False)
    assert str(gathered.address[0]) == "other.example:7828"
    assert (gathered.token, gathered.pool, gathered.tls, gathered.namespace) == ("", 1, False, "shop")


def test_an_empty_variable_is_none() -> None:
    assert Settings.gather(dict.fromkeys(ENVIRONMENT, "")) == Settings.gather({})


@pytest.mark.parametrize(("text", "tls"), [("true", True), ("Yes", True), ("1", True), ("off", False), ("/on", "/on")])
def test_tls_can_be_a_word(text: str, tls: object) -> None:
    assert Settings.gather({"STATESTORE_TLS": text}).tls == tls


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("address", "mx.example:port"),
        ("address", "a,,b"),
        ("address", 5),
        ("namespace", 5),
        ("token", b"sesame"),
        ("tls_cert", 5),
        ("deadline", 0),
        ("deadline", "soon"),
        ("deadline", float("nan")),
        ("write_deadline", float("inf")),
        ("pool", 0),
        ("pool", 1.5),
        ("pool", "many"),
        ("pool", float("inf")),
        ("store_id", 5),
    ],
)
def test_what_cannot_be_one_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}: ."):
        Settings.gather({}, **{name: value})
    if isinstance(value, str):
        variable = f"STATESTORE_{name.upper()}"
        with pytest.raises(ValueError, match=f"^{variable}: ."):
            Settings.gather({variable: value})


def test_a_token_is_not_shown() -> None:
    assert "sesame" not in repr(Settings.gather(ENVIRONMENT))


def test_an_unknown_variable_is_warned_about_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(settings, "_warned_of", set())
    environment = {"STATESTORE_ADRESS": "secret.example", "STATESTORED_LISTEN": "the daemon's", "STATESTORE": "x"}
    for _ in range(3):
        Settings.gather(environment)
    assert caplog.messages == ["STATESTORE_ADRESS is in the environment, but there is no such setting"]


def test_a_storage_is_set_up_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("STATESTORE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("STATESTORE_ADDRESS", address := refused())
    monkeypatch.setenv("STATESTORE_NAMESPACE", "shop")
    monkeypatch.setenv("STATESTORE_DEADLINE", "0.25")
    assert repr(RemoteStorage()) == f"<RemoteStorage {address} namespace='shop'>"
    assert RemoteStorage()._settings.deadline == 0.25
    monkeypatch.setenv("STATESTORE_POOL", "none")
    with pytest.raises(ValueError, match="STATESTORE_POOL"):
        RemoteStorage()
