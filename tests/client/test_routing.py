"""Attaching a store to a Router: a small one of Salmon's shape, and Salmon's own."""

import copy
import functools
import pickle
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from unittest.mock import Mock

import pytest

from statestore import MemoryStorage, RemoteStorage, TooLong, Unavailable
from statestore.base import Pair, Sender
from statestore.routing import DeliveryView, attach
from tests.client.scripts import finish, run_script, start_script
from tests.client.servers import refused
from tests.daemon import Daemon

PATIENCE = 20.0  # seconds after which a test has hung


@dataclass
class Mail:
    From: str | None = "a@b.example"
    To: str = "list@mx.example"


class Router:
    """Which handlers run for a mail, and when the store is asked, is as in Salmon 3.3."""

    def __init__(self, attribute: str = "_salmon_settings") -> None:
        self.attribute = attribute
        self.STATE_STORE: Any = MemoryStorage()
        self.routes: list[tuple[str, Any]] = []

    def handler(self, pattern: str = ".*", module: str = "app", **settings: bool) -> Callable[[Any], Any]:
        def register(function: Any) -> Any:
            function.__module__ = module
            setattr(function, self.attribute, settings)
            self.routes.append((pattern, function))
            return function

        return register

    def match(self, address: str) -> Iterator[tuple[list[Any], dict[str, str]]]:
        for pattern, function in self.routes:
            if re.fullmatch(pattern, address):
                yield [function], {}

    def state_key(self, module: str, message: Mail) -> str:
        return f"{module}:{message.To.partition('@')[0]}"

    def state(self, function: Any, message: Mail) -> str:
        state: str = self.STATE_STORE.get(self.state_key(function.__module__, message), message.From)
        return state

    def deliver(self, message: Mail) -> None:
        in_state_found = False
        for functions, _ in self.match(message.To):
            for function in functions:
                if getattr(function, self.attribute).get("stateless"):
                    function(message)
                elif not in_state_found and self.state(function, message) == function.__name__:
                    in_state_found = True
                    if next_state := function(message):
                        self.STATE_STORE.set(self.state_key(function.__module__, message), message.From, next_state)


class Spy(MemoryStorage):
    """Remembers what it was asked, in order; `after_get` stands for what others do meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[object] = []
        self.after_get: Callable[[], None] = lambda: None

    def get(self, module: str, sender: Sender) -> str:
        self.log.append("get")
        state = super().get(module, sender)
        self.after_get()
        return state

    def get_many(self, pairs: Iterable[Pair]) -> list[str]:
        pairs = list(pairs)
        self.log.append(pairs)
        states = super().get_many(pairs)
        self.after_get()
        return states


class Down(MemoryStorage):
    """Cannot be asked."""

    def _held(self) -> Any:
        raise Unavailable("down")


@pytest.fixture
def router() -> Router:
    return Router()


@pytest.fixture
def spy(router: Router) -> Spy:
    """Attached."""
    spy = Spy()
    attach(router, spy)
    return spy


def register_list(router: Router, log: list[object]) -> None:
    """A list whose handlers write into `log`."""

    @router.handler()
    def POSTING(_: Mail) -> None:  # noqa: N802
        log.append("POSTING")

    @router.handler(stateless=True)
    def archive(_: Mail) -> None:
        log.append("archive")

    @router.handler()
    def START(_: Mail) -> str:  # noqa: N802
        log.append("START")
        return "POSTING"


def test_one_question_comes_before_all_handlers(router: Router, spy: Spy) -> None:
    register_list(router, spy.log)
    router.deliver(Mail())
    assert spy.log == [[("app:list", "a@b.example")], "archive", "START"]
    spy.log.clear()
    router.deliver(Mail())
    assert spy.log == [[("app:list", "a@b.example")], "POSTING", "archive"]


def test_the_question_is_for_each_key_of_a_candidate_once(router: Router, spy: Spy) -> None:
    for pattern, module, stateless in [
        ("list@.*", "b", False),
        (".*", "a", False),
        (".*", "a", False),
        ("list@.*", "c", True),
        ("other@.*", "d", False),
    ]:
        router.handler(pattern, module, stateless=stateless)(lambda _: None)
    router.deliver(Mail(From=None))
    assert spy.log == [[("a:list", None), ("b:list", None)]]


@pytest.mark.parametrize("attribute", ["_salmon_settings", "_lamson_settings"])
def test_stateless_handlers_need_no_store(attribute: str) -> None:
    router, log = Router(attribute), []
    router.handler(stateless=True)(lambda message: log.append(message))
    attach(router, Down())
    router.deliver(Mail())
    assert log == [Mail()]


def test_mail_that_matches_nothing_needs_no_store(router: Router) -> None:
    attach(router, Down())
    router.deliver(Mail())


def test_a_store_that_is_away_stops_the_delivery_before_any_handler(router: Router) -> None:
    log: list[object] = []
    register_list(router, log)
    attach(router, Down())
    with pytest.raises(Unavailable):
        router.deliver(Mail())
    assert log == []


def test_a_sender_that_is_too_long_stops_it_too(router: Router, spy: Spy) -> None:
    log: list[object] = []
    register_list(router, log)
    with pytest.raises(TooLong, match=r"^sender "):
        router.deliver(Mail(From="x" * 5000))
    assert log == []
    assert spy.count() == 0


@pytest.mark.parametrize(("attached", "handled"), [(False, ["archive"]), (True, ["archive", "START"])])
def test_a_change_between_two_questions_loses_no_mail(router: Router, attached: bool, handled: list[str]) -> None:
    """As the other process does it, whose answer to the same sender is stored meanwhile."""
    log: list[object] = []
    register_list(router, log)
    store = Spy()
    store.after_get = lambda: store.set("app:list", "a@b.example", "POSTING")
    if attached:
        attach(router, store)
    else:
        router.STATE_STORE = store
    router.deliver(Mail())
    assert log == handled


def test_a_delivery_sees_what_it_set_itself_and_nothing_else(router: Router, spy: Spy) -> None:
    seen = []

    @router.handler(stateless=True)
    def change(message: Mail) -> None:
        spy.set("app:list", message.From, "OTHERS")
        seen.append(router.STATE_STORE.get("app:list", message.From))
        router.STATE_STORE.set("app:list", message.From, "POSTING")
        spy.set("app:list", message.From, "OTHERS")
        seen.append(router.STATE_STORE.get("app:list", message.From))

    register_list(router, seen)
    router.deliver(Mail())
    assert seen == ["START", "POSTING", "POSTING", "archive"]
    assert router.STATE_STORE.get("app:list", "a@b.example") == "OTHERS"


def test_a_state_that_was_not_foreseen_is_asked_for_once(router: Router, spy: Spy) -> None:
    @router.handler()
    def START(message: Mail) -> None:  # noqa: N802
        for _ in range(3):
            router.STATE_STORE.get("elsewhere", message.From)

    router.deliver(Mail())
    assert spy.log == [[("app:list", "a@b.example")], "get"]


def test_a_set_that_fails_is_not_seen(router: Router, spy: Spy) -> None:
    spy.set = Mock(side_effect=Unavailable("down"))  # type: ignore[method-assign]
    seen = []

    @router.handler()
    def START(message: Mail) -> None:  # noqa: N802
        with pytest.raises(Unavailable):
            router.STATE_STORE.set("app:list", message.From, "POSTING")
        seen.append(router.STATE_STORE.get("app:list", message.From))

    router.deliver(Mail())
    assert seen == ["START"]


def test_a_delivery_inside_of_another_has_its_own_picture(router: Router, spy: Spy) -> None:
    seen = []

    @router.handler("list@.*", stateless=True)
    def forward(message: Mail) -> None:
        spy.set("app:list", message.From, "OTHERS")
        spy.set("app:archive", message.From, "OTHERS")
        router.deliver(Mail(To="archive@mx.example"))
        seen.append(("after", router.STATE_STORE.get("app:list", message.From)))

    @router.handler("archive@.*")
    def OTHERS(message: Mail) -> None:  # noqa: N802
        seen.append(("inside", router.STATE_STORE.get("app:list", message.From)))

    register_list(router, [])
    router.deliver(Mail())
    assert seen == [("inside", "OTHERS"), ("after", "START")]


def test_a_delivery_that_failed_leaves_no_picture_behind(router: Router, spy: Spy) -> None:
    @router.handler()
    def START(_: Mail) -> None:  # noqa: N802
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        router.deliver(Mail())
    spy.set("app:list", "a@b.example", "POSTING")
    assert router.STATE_STORE.get("app:list", "a@b.example") == "POSTING"


@pytest.mark.usefixtures("spy")
def test_each_thread_has_its_own_picture(router: Router) -> None:
    both_inside, changed = threading.Barrier(2, timeout=PATIENCE), threading.Event()
    seen = {}

    @router.handler()
    def START(message: Mail) -> None:  # noqa: N802
        both_inside.wait()
        if message.From == "a":
            router.STATE_STORE.set("app:list", "a", "A")
            router.STATE_STORE.set("app:list", "b", "A")
            changed.set()
        assert changed.wait(PATIENCE)
        seen[message.From] = [router.STATE_STORE.get("app:list", sender) for sender in ("a", "b")]

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(router.deliver, [Mail(From="a"), Mail(From="b")]))
    assert seen == {"a": ["A", "A"], "b": ["A", "START"]}  # b's own was fetched before; a's it had to ask for


def test_outside_of_a_delivery_it_is_the_store_itself(router: Router, spy: Spy) -> None:
    router.STATE_STORE.set("app:list", None, "POSTING")
    assert spy.get("app:list", None) == router.STATE_STORE.get("app:list", None) == "POSTING"
    router.STATE_STORE.clear()
    assert spy.count() == 0


def test_clear_forgets_the_picture_as_well(router: Router, spy: Spy) -> None:
    seen = []

    @router.handler()
    def START(message: Mail) -> None:  # noqa: N802
        router.STATE_STORE.set("app:list", message.From, "POSTING")
        router.STATE_STORE.clear()
        seen.append(router.STATE_STORE.get("app:list", message.From))

    router.deliver(Mail())
    assert seen == ["START"]
    assert spy.count() == 0


@pytest.mark.usefixtures("spy")
def test_a_handler_may_use_every_method_of_the_store(router: Router) -> None:
    """librelist's bounce handler calls `Router.STATE_STORE.set_all`."""
    seen = []

    @router.handler(stateless=True)
    def bounce(message: Mail) -> None:
        router.STATE_STORE.set("app:list", message.From, "POSTING")
        seen.append(router.STATE_STORE.set_all(message.From, "BOUNCING"))
        seen.append(router.STATE_STORE.get("app:list", message.From))
        seen.append(router.STATE_STORE.compare_and_set("app:list", message.From, "BOUNCING", "POSTING"))
        seen.append(router.STATE_STORE.get("app:list", message.From))
        router.STATE_STORE.set_many([("app:list", message.From, "LEFT"), ("app:list", "other", "LEFT")])
        seen.append(router.STATE_STORE.get("app:list", message.From))
        seen.append(router.STATE_STORE.count(state="LEFT"))

    router.deliver(Mail())
    assert seen == [1, "BOUNCING", (True, "BOUNCING"), "POSTING", "LEFT", 2]


def test_attaching_again_replaces_the_store(router: Router, spy: Spy) -> None:
    """As tests do, which attach a store of their own for each."""
    log: list[object] = []
    register_list(router, log)
    for _ in range(500):
        latest = Spy()
        attach(router, latest)
    router.deliver(Mail())
    assert log == ["archive", "START"]
    assert spy.log == []
    assert latest.log == [[("app:list", "a@b.example")]]


def test_what_others_put_around_deliver_stays(router: Router) -> None:
    log: list[object] = []
    register_list(router, log)
    deliver = router.deliver

    @functools.wraps(deliver)
    def counted(message: Mail) -> None:
        log.append("counted")
        deliver(message)

    router.deliver = counted  # type: ignore[method-assign]
    for _ in range(2):
        attach(router, Spy())
        router.deliver(Mail())
    assert log == ["counted", "archive", "START"] * 2


LIST = """
import sys
from salmon import server
from salmon.mail import MailRequest
from salmon.routing import Router, route, stateless
from statestore import RemoteStorage
from statestore.routing import DeliveryView, attach

address, namespace, mode = sys.argv[1:]
store = RemoteStorage(address, namespace=namespace, deadline=0.3)
if mode == "attach":
    attach(Router, store)
else:
    Router.STATE_STORE = store

@route("list@mx.example")
def POSTING(message):
    print("POSTING")

@route("list@mx.example")
@stateless
def archive(message):
    print("archive", flush=True)
    sys.stdin.readline()

@route("list@mx.example")
def START(message):
    print("START")
    return CONFIRMING

@route("list@mx.example")
def CONFIRMING(message):
    print("CONFIRMING")

try:
    Router.deliver(MailRequest("peer", "a@b.example", "list@mx.example", "Subject: x\\n\\nhello"))
except server.SMTPError as error:
    print(error)
"""


@pytest.mark.parametrize(("mode", "handled"), [("plain", []), ("attach", ["START"])])
def test_salmon_loses_no_mail_to_a_change_by_another_process(
    shared_daemon: Daemon, store: RemoteStorage, mode: str, handled: list[str]
) -> None:
    salmon = start_script(LIST, shared_daemon.address, store._settings.namespace, mode)
    assert salmon.stdout is not None
    assert salmon.stdout.readline() == "archive\n"
    store.set("__main__", "a@b.example", "POSTING")
    assert finish(salmon).split() == handled


def test_salmon_is_attached_and_keeps_states(shared_daemon: Daemon, store: RemoteStorage) -> None:
    for handled in (["archive", "START"], ["archive", "CONFIRMING"]):
        printed = run_script(LIST, shared_daemon.address, store._settings.namespace, "attach")
        assert printed.split() == handled
    assert store.counts() == {("__main__", "CONFIRMING"): 1}


def test_salmon_defers_a_mail_before_any_handler_has_seen_it() -> None:
    printed = run_script(LIST, refused(), "default", "attach")
    assert printed == "451 4.3.0 state store unavailable, try again later\n"


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda view: pickle.loads(pickle.dumps(view))])
def test_a_copy_of_what_is_attached_has_no_delivery_under_way(duplicate: Callable[[Any], Any]) -> None:
    view = DeliveryView(RemoteStorage("there:1"))

    def deliver() -> None:
        view._learn("m", "a", "A")
        clone = duplicate(view)
        assert clone._states is None
        assert (clone._storage is view._storage) == (duplicate is copy.copy)
        assert repr(clone._storage) == repr(view._storage)

    view.during_delivery([], deliver)
