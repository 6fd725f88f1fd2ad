"""Bench models are built once, whole or not at all, and the same every time."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from servinglib.models import bench
from servinglib.models.bench import bench_folder, build_bench_model
from servinglib.models.loading import load_model
from servinglib.models.shapes import BENCH_SHAPES, Shape
from servinglib.models.zoo import resolve

SMALL = Shape(
    vocab_size=4100,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    intermediate_size=64,
    max_position_embeddings=128,
    rope_theta=10_000.0,
)


def checksums(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SERVINGLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def bench_30m(shared_cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SERVINGLIB_CACHE", str(shared_cache))
        yield load_model("bench-30m", progress=False)


def test_two_builds_are_equal_to_the_byte(empty_cache, tmp_path, monkeypatch):
    first = checksums(build_bench_model("small", SMALL, progress=False))
    monkeypatch.setenv("SERVINGLIB_CACHE", str(tmp_path / "other"))
    second = checksums(build_bench_model("small", SMALL, progress=False))
    assert first == second
    assert "model-layer-01.safetensors" in first


def test_another_seed_gives_other_weights_in_another_folder(empty_cache, monkeypatch):
    first = build_bench_model("small", SMALL, progress=False)
    monkeypatch.setattr(bench, "SEED", bench.SEED + 1)
    second = build_bench_model("small", SMALL, progress=False)
    assert first != second
    assert checksums(first)["model-rest.safetensors"] != checksums(second)["model-rest.safetensors"]


def test_weights_do_not_depend_on_the_size_of_a_chunk(empty_cache, tmp_path, monkeypatch):
    first = checksums(build_bench_model("small", SMALL, progress=False))
    monkeypatch.setattr(bench, "CHUNK", 1000)
    monkeypatch.setenv("SERVINGLIB_CACHE", str(tmp_path / "other"))
    assert checksums(build_bench_model("small", SMALL, progress=False)) == first


def test_a_second_use_opens_the_files_of_the_first(empty_cache):
    folder = build_bench_model("small", SMALL, progress=False)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert build_bench_model("small", SMALL, progress=False) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_what_a_killed_build_left_is_never_used(empty_cache):
    folder = bench_folder("small", SMALL)
    debris = folder.with_name(folder.name + ".unfinished")
    debris.mkdir(parents=True)
    (debris / "config.json").write_text("{}")
    (debris / "model-layer-07.safetensors").write_bytes(b"half")
    assert build_bench_model("small", SMALL, progress=False) == folder
    assert not debris.exists()
    assert not (folder / "model-layer-07.safetensors").exists()
    load_model(str(folder))


def test_a_build_that_fails_leaves_nothing_and_the_next_one_succeeds(empty_cache, monkeypatch):
    import safetensors.torch

    save, calls = safetensors.torch.save_file, []

    def disk_fills_up(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError("No space left on device")
        save(*arguments, **options)

    monkeypatch.setattr(safetensors.torch, "save_file", disk_fills_up)
    with pytest.raises(OSError, match="No space left"):
        build_bench_model("small", SMALL, progress=False)
    assert not [path for path in (empty_cache / "models").iterdir() if path.suffix != ".lock"]
    load_model(str(build_bench_model("small", SMALL, progress=False)))


def test_builders_that_start_together_write_one_model_once(empty_cache, monkeypatch):
    builds, write = [], bench._write_weights
    monkeypatch.setattr(bench, "_write_weights", lambda *given: (builds.append(given), write(*given)))
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: build_bench_model("small", SMALL, progress=False), range(4)))
    assert folders == {bench_folder("small", SMALL)}
    assert len(builds) == 1


def test_progress_goes_to_the_error_stream_and_only_if_wanted(empty_cache, capsys, monkeypatch):
    build_bench_model("quiet", SMALL, progress=False)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    build_bench_model("small", SMALL, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "building small" in shown.err


def test_every_id_of_bench_30m_decodes(bench_30m):
    model, tokenizer = bench_30m
    assert len(tokenizer) == model.config.vocab_size == 8192
    assert all(isinstance(tokenizer.decode([token]), str) for token in range(8192))
    assert tokenizer.decode([4096]) == "<unused4096>"
    assert tokenizer.decode([8191]) == "<unused8191>"


def test_no_text_produces_an_unused_token(bench_30m):
    _, tokenizer = bench_30m
    ids = tokenizer("x = '<unused4096>' <unused8191>\n").input_ids
    assert max(ids) < 4096
    assert ids == load_model("course-tiny")[1]("x = '<unused4096>' <unused8191>\n").input_ids


def test_greedy_decoding_of_bench_30m_does_not_stick_to_one_token(bench_30m):
    model, tokenizer = bench_30m
    prompt = tokenizer("import os\n", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=24, do_sample=False)[
        0, prompt.input_ids.shape[1] :
    ].tolist()
    assert len(set(answer)) >= 8


def test_bench_30m_has_the_shape_it_promises(bench_30m):
    config = bench_30m[0].config
    shape = BENCH_SHAPES["bench-30m"]
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (8, 512, 1536)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (8, 4, 64)
    assert config.max_position_embeddings == shape.max_position_embeddings == 4096
    assert bench_30m[0].num_parameters() == shape.parameters


def test_bench_30m_is_kept_as_bfloat16(shared_cache):
    folder = Path(resolve("bench-30m", progress=False))
    assert folder.is_relative_to(shared_cache)
    model, _ = load_model("bench-30m", dtype="auto")
    assert str(model.dtype) == "torch.bfloat16"
