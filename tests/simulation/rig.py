"""A machine with a disk, for tests of what stands for the system, without the product's daemon or clients."""

from collections.abc import Callable
from typing import TypeVar

from tests.simulation.disk import Disk
from tests.simulation.kernel import Kernel, Machine, Process

T = TypeVar("T")
LIMIT = 60.0  # virtual seconds that a function may take


class Rig:
    def __init__(self, seed: int = 1, *, has_directory: bool = True) -> None:
        self.kernel = Kernel(seed)
        self.disk = Disk(self.kernel, has_directory=has_directory)
        self.machine = Machine(self.kernel, "server", self.disk)

    def start(self, function: Callable[[], object]) -> Process:
        process = Process(self.kernel, "daemon", self.machine)
        process.spawn(function)
        return process

    def run(self) -> None:
        self.kernel.run(self.kernel.now + LIMIT)
        assert not self.kernel.failures

    def call(self, function: Callable[[], T]) -> T:
        """Run a function as a process, which ends with it. Return what it returns, or raise what it raises."""
        results: list[T] = []
        errors: list[Exception] = []

        def run() -> None:
            try:
                results.append(function())
            except Exception as error:
                errors.append(error)

        process = self.start(run)
        self.run()
        process.kill()
        if errors:
            raise errors[0]
        return results[0]
