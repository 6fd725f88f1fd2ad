"""One cache directory for the whole run, so that bench-30m is built once; the user's own stays untouched."""

import pytest


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("zoo-cache")


@pytest.fixture(autouse=True)
def _no_cache_of_the_user(shared_cache, monkeypatch):
    monkeypatch.setenv("SERVINGLIB_CACHE", str(shared_cache))
    monkeypatch.delenv("SERVINGLIB_ALLOW_DOWNLOAD", raising=False)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Models this small gain nothing from more, and two test processes on two cores would only jostle."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
