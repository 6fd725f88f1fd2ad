import asyncio
import time

import pytest

from servinglib import virtual_time
from servinglib.virtual_time import NothingWillHappen


def test_an_hour_passes_in_no_time_and_exactly() -> None:
    async def main() -> float:
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    start = time.perf_counter()
    assert virtual_time.run(main()) == 3600.0
    assert time.perf_counter() - start < 60


def test_timers_ring_in_the_order_of_their_times_at_exactly_those_times() -> None:
    rung: list[tuple[str, float]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for name, when in [("c", 0.3), ("a", 0.1), ("b", 0.1 + 0.1)]:
            loop.call_at(when, lambda name=name: rung.append((name, loop.time())))
        loop.call_at(0.05, rung.append, ("never", 0.0)).cancel()
        await asyncio.sleep(1)

    virtual_time.run(main())
    assert rung == [("a", 0.1), ("b", 0.2), ("c", 0.3)]


def test_timeouts_work_on_virtual_time() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(100), timeout=7)
        return asyncio.get_running_loop().time()

    assert virtual_time.run(main()) == 7.0


def test_a_program_that_can_never_go_on_is_told_so_instead_of_hanging() -> None:
    async def main() -> None:
        await asyncio.sleep(2)
        asyncio.get_running_loop().call_at(5, print, "never").cancel()
        await asyncio.Event().wait()

    with pytest.raises(NothingWillHappen, match="at virtual time 2 s"):
        virtual_time.run(main())
