"""`make bench-check`: what is worse than the committed numbers, by more than the noise of both."""

import json

import bench_check
import pytest
from bench import ROWS

EMBED = next(row for row in ROWS if row.result == "embed")
ADAPTERS = next(row for row in ROWS if row.result == "adapters")
KIND = {"what": "w", "machine": "x86_64, AVX2", "threads": 1}


def embed(ratio, spread):
    return {**KIND, "engines": {"Polyhead": {"ratio": ratio, "spread": spread}}}


def adapters(ratio, spread):
    return {
        **KIND,
        "16x16, 16 adapters, even": {"Polyhead": {"ratio": ratio, "ratio spread": spread}},
    }


@pytest.mark.parametrize(
    ("now", "verdict"),
    [
        (embed(1.3, [1.25, 1.4]), "as good"),
        (embed(1.1, [1.0, 1.21]), "as good"),  # its best turn reaches the worst one of then
        (embed(1.1, [1.0, 1.19]), "worse"),
        (embed(1.6, [1.5, 1.7]), "better"),
        (embed(1.0, [1.0, 1.0]), "worse"),  # one turn: a tenth
        (embed(1.1, None), "as good"),
        (None, "not compared"),
        ({**embed(1.0, None), "machine": "x86_64, AVX512"}, "not compared"),
        ({**embed(1.0, None), "threads": 2}, "not compared"),
    ],
)
def test_a_large_ratio_is_good(now, verdict):
    assert bench_check.judge(EMBED, embed(1.3, [1.2, 1.4]), now)[0] == verdict


@pytest.mark.parametrize(
    ("now", "verdict"),
    [
        (adapters(1.5, [1.45, 1.6]), "worse"),
        (adapters(1.4, [1.35, 1.5]), "as good"),
        (adapters(1.1, [1.0, 1.15]), "better"),
    ],
)
def test_a_small_ratio_is_good(now, verdict):
    assert bench_check.judge(ADAPTERS, adapters(1.3, [1.2, 1.4]), now)[0] == verdict


def test_what_was_never_committed_is_not_compared():
    assert bench_check.judge(EMBED, None, embed(1, None))[0] == "not compared"


def test_a_machine_that_does_other_things_too_tells_nothing():
    verdict, why = bench_check.judge(ADAPTERS, adapters(1.3, [1.2, 1.4]), adapters(1.2, [0.6, 1.9]))
    assert verdict == "not compared"
    assert why.startswith("too noisy: 1.2 (0.6 to 1.9)")


@pytest.mark.parametrize(("ratio", "code"), [(1.3, 0), (2.0, 1), (None, 1)])
def test_it_fails_where_a_row_is_worse_or_none_can_be_compared(
    tmp_path, monkeypatch, capsys, ratio, code
):
    monkeypatch.setattr(bench_check, "RESULTS", tmp_path)
    fan_out = {"fan-out": {"8 forwards": {"ratio": 2.0, "ratio spread": None}}}
    (tmp_path / "adapters.json").write_text(json.dumps({**adapters(1.3, [1.2, 1.4]), **fan_out}))
    now = tmp_path / "now"
    now.mkdir()
    if ratio is not None:
        (now / "adapters.json").write_text(json.dumps({**adapters(ratio, None), **fan_out}))
    assert bench_check.compare(now) == code
    told = capsys.readouterr().out
    assert ("worse  mixed rows, 16 adapters" in told) == (ratio == 2.0)
    assert "no part of make bench" in told
