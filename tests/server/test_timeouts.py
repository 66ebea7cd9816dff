"""Those in a state that may not last are looked at until they are not."""

from statestored.timeouts import Watch


class Passing:
    def __init__(self, lasts: int) -> None:
        self.lasts = lasts
        self.seen: list[int] = []

    def look(self, now: int) -> bool:
        self.seen.append(now)
        return len(self.seen) < self.lasts


def test_they_are_looked_at_while_there_is_something_to_see() -> None:
    watch = Watch()
    watch.tick()
    long, short = Passing(3), Passing(1)
    assert watch.add(long) == watch.add(long) == watch.add(short) == watch.now == 1
    for _ in range(5):
        watch.tick()
    assert (long.seen, short.seen) == ([2, 3, 4], [2])
    watch.add(short)
    watch.tick()
    assert short.seen == [2, 7]


def test_they_are_looked_at_in_the_order_in_which_they_were_added() -> None:
    watch, order = Watch(), list[int]()

    class Noted:
        def __init__(self, number: int) -> None:
            self.number = number

        def look(self, _now: int) -> bool:
            order.append(self.number)
            return True

    watched = [Noted(number) for number in range(50)]
    for one in watched:
        watch.add(one)
    watch.discard(watched[7])
    watch.add(watched[7])
    watch.add(watched[3])  # it is there, and keeps its place
    watch.tick()
    assert order == [*range(7), *range(8, 50), 7]


def test_whoever_has_gone_is_not_looked_at() -> None:
    watch = Watch()
    one = Passing(9)
    watch.add(one)
    watch.discard(one)
    watch.discard(one)
    watch.tick()
    assert one.seen == []
