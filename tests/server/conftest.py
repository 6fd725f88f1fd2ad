"""Tests of the server that are coroutines run on virtual time; a test with a thread uses asyncio.run."""

import asyncio
import inspect

import pytest

from servinglib import virtual_time


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    virtual_time.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


class ScriptedModel:
    """Takes 1 s for a batch, and 0.01 s more for each item; what an item is says what becomes of it.

    A number is answered by ten times itself, an exception fails alone, a string is raised by the
    whole batch as a ValueError, and None is forgotten in the list of results.
    """

    def __init__(self):
        self.batches = []
        self.starts = []

    async def generate_batch(self, items):
        self.batches.append(list(items))
        self.starts.append(asyncio.get_running_loop().time())
        await asyncio.sleep(1 + 0.01 * len(items))
        for item in items:
            if isinstance(item, str):
                raise ValueError(item)
        return [i if isinstance(i, Exception) else i * 10 for i in items if i is not None]


@pytest.fixture
def model():
    return ScriptedModel()
