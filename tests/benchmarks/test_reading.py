"""What reading costs: every measurement on a tiny model, turns, and ratios of times that are known."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model

from infinipot_llm import Document, InfiniPot, PotConfig
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # scripts, not a package

import reading
import reading_batches
import reading_report
import reading_tools
from reading_tools import Clock, Reading, Rows, Subject, Work, beside, chunks, plain_reading

DOCUMENT = Document.from_text("The mill at Arden burned down in 1874. " * 12)
SIZE = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MACHINE = {"model": "m", "cpu": "c", "cores": 2, "torch": "1", "transformers": "5"}
SET = {**MACHINE, "dtype": "float32", "threads": 1, "budget": 400, "chunk": 32}


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def subject(request: pytest.FixtureRequest, codec: TextCodec) -> Iterator[Subject]:
    sizes = SIZE if request.param == "llama" else {}
    config = PotConfig(
        budget=400, chunk=32, catalysts=("Who?", "When was it?"), max_new_tokens=16, question_tokens=16, shelf="off"
    )
    with InfiniPot(Adapter(tiny_model(request.param, **sizes)), codec, config) as llm:
        yield Subject.of(llm, DOCUMENT)


class Times:
    """A clock that only moves when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def passes(self, seconds: float) -> None:
        self.now += seconds


# --- ratios ---


def test_ratio_of_times_in_turns() -> None:
    both = beside([2.0, 4.0, 30.0], [1.0, 8.0, 10.0])
    assert both == {"count": 3, "first": 4.0, "second": 8.0, "ratio": 0.5, "lowest": 0.5, "highest": 3.0}
    with pytest.raises(ValueError, match="shorter"):
        beside([1.0, 2.0], [1.0])


def test_a_batch_is_compared_with_as_many_single_ones() -> None:
    assert reading_batches.gain([1.0, 1.0, 2.0], [2.0, 2.0, 4.0], 4)["ratio"] == 2.0


def test_clock_counts_what_is_called_inside_once(monkeypatch: pytest.MonkeyPatch) -> None:
    times, clock = Times(monkeypatch), Clock()
    forward = clock._timed("forward", lambda: times.passes(2.0))

    def scores() -> None:
        times.passes(1.0)
        forward()
        times.passes(0.5)

    forward()
    clock._timed("catalyst: scores", scores)()
    assert clock.seconds == {"forward": 2.0, "catalyst: forward": 2.0, "catalyst: scores": 1.5}


def test_full_cache_beside_pot(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece of the pot takes 2 s, without novelty 1 s, and the nth of the full cache n s."""
    taken = {"full": 0.0}

    class Pieces:
        def __init__(self, count: int, name: str) -> None:
            self.left, self.name = count, name

        @property
        def over(self) -> bool:
            return self.left == 0

        def step(self) -> float:
            self.left -= 1
            if self.name == "full":
                taken["full"] += 1.0
                assert not subject.adapter._hooks  # plain
                return taken["full"]
            assert subject.adapter._hooks
            return 2.0 if self.name == "pot" else 1.0

    monkeypatch.setattr(reading, "Reading", lambda s, n: Pieces(4, "pot" if s.config.novelty_share else "none"))
    monkeypatch.setattr(reading, "plain_reading", lambda s, n, ends: Pieces(5, "full"))
    row = reading.full(subject, 1000)
    assert row["seconds"] == {"pot": 8.0, "pot_without_novelty": 4.0, "full": 15.0}
    assert (row["full_to_pot"], row["full_to_pot_without_novelty"], row["novelty_to_without"]) == (1.875, 3.75, 2.0)


def test_late_cycles_beside_early_ones(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first reading takes 1 s a cycle, and 2 s from the last tenth on; the second 1 s always."""
    made: list[Any] = []

    class Cycles:
        def __init__(self, subject: Subject, tokens: int) -> None:
            self.steps, self.first = 0, not made
            made.append(self)

        def step(self) -> float:
            self.steps += 1
            return 2.0 if self.first and self.steps > cycles - cycles // 10 + 1 else 1.0

        def close(self) -> None:
            assert self.steps == 1 + (cycles if self.first else cycles // 10)

    divided = subject.plan()
    freed, cycles = divided.room - divided.kept, 20
    monkeypatch.setattr(reading, "Reading", Cycles)
    row = reading.flat_speed(subject, divided.room - len(subject.prefix) + cycles * freed + 1)
    assert (row["cycles"], row["cycles_compared"], row["late_to_early"]) == (cycles, 2, 0.5)
    assert row["early_tokens_per_second"] == freed
    assert set(row["tokens_per_second_by_tenth"]) == {freed}


def test_report_of_variants_is_relative_to_the_first_in_the_same_rounds() -> None:
    def row(name: str, number: int, read: float, decode: float) -> dict[str, Any]:
        return {
            "measured": "speed", "variant": name, "round": number, "read_tokens_per_second": read,
            "decode_tokens_per_second": decode, "nll": 1.0, "tokens": 9, "tokens_read": 9, **SET,
        }  # fmt: skip

    rows = [row("a", 0, 10.0, 5.0), row("a", 1, 20.0, 5.0), row("b", 1, 40.0, 10.0)]
    rows.append({**SET, "measured": "speed", "variant": "c", "round": 0, "tokens": 9, "skipped": "not here."})
    lines = reading_report.report_speed(rows)
    assert lines[3:] == [
        "| b | 40.0 | 2.00 | 10.0 | 2.00 | 1.0 | 1 |",
        "| c | not here. |  |  |  |  | 0 |",
    ]
    bf16 = [{**r, "dtype": "bfloat16"} for r in (row("a", 0, 30.0, 5.0), row("d", 0, 15.0, 5.0))]
    stopped = {**bf16[1], "variant": "e", "tokens_read": 8}
    lines = reading_report.report_speed([*rows, *bf16, stopped])
    assert lines[-2:] == [
        "| d | 15.0 | 0.50 | 5.0 | 1.00 | 1.0 | 1 |",
        "| e, stopped at 8 tokens | 15.0 | 0.50 | 5.0 | 1.00 | 1.0 | 1 |",
    ]


# --- turns ---


def test_work_goes_on_piece_by_piece_and_can_be_given_up() -> None:
    seen: list[int] = []

    def count(pause: Any) -> None:
        for number in range(3):
            seen.append(number)
            pause()

    first, second = Work(count), Work(count)
    first.step()
    assert seen == [0]
    second.step()
    first.step()
    assert seen == [0, 0, 1]
    second.close()
    while not first.over:
        first.step()
    assert seen == [0, 0, 1, 2]

    def fail(pause: Any) -> None:
        raise ValueError("as it was")

    with pytest.raises(ValueError, match="as it was"):
        Work(fail).step()


def test_chunks_end_at_borders() -> None:
    assert list(chunks(0, 10, 4, [2, 7, 12])) == [(0, 2), (2, 6), (6, 7), (7, 10)]


def test_pieces_of_a_reading_are_whole_cycles(subject: Subject) -> None:
    divided, work = subject.plan(), Reading(subject, 900)
    work.step()
    read = [work.stats.tokens_read]
    assert read == [divided.room - len(subject.prefix)]
    while not work.over:
        work.step()
        read.append(work.stats.tokens_read)
        assert work.stats.cycles == len(read) - 1 or work.over
    assert set(torch.tensor(read[:-1]).diff().tolist()) == {divided.room - divided.kept}
    assert read[-1] == 900


def test_the_plain_reading_sees_every_token_once(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    true_forward = reading_tools.plain_forward

    def forward(adapter: Adapter, ids: torch.Tensor, cache: Any) -> torch.Tensor:
        hidden = true_forward(adapter, ids, cache)
        lengths.append(cache.get_seq_length())
        return hidden

    monkeypatch.setattr(reading_tools, "plain_forward", forward)
    with reading_tools.plain(subject.adapter):
        work, pieces = plain_reading(subject, 100, [40, 70]), 0
        while not work.over:
            work.step()
            pieces += 1
    assert pieces == 3
    assert lengths == [len(subject.prefix) + n for n in (0, 32, 40, 70, 100)]


def test_plain_decoding_forwards_the_question_once_and_then_token_by_token(subject: Subject) -> None:
    lengths: list[int] = []
    hook = subject.adapter.backbone.embed_tokens.register_forward_pre_hook(lambda _, a: lengths.append(a[0].shape[1]))
    before = subject.adapter.model.generation_config
    with reading_tools.plain(subject.adapter):
        times = reading.decode_plain(subject, subject.states(50), subject.catalysts[0], new=5)
    hook.remove()
    assert lengths == [len(subject.catalysts[0]), 1, 1, 1, 1]
    assert len(times) == 4
    assert subject.adapter.model.generation_config is before


# --- every measurement ---


def test_every_measurement_of_one_process(subject: Subject) -> None:
    divided = subject.plan()
    freed = divided.room - divided.kept
    flat = reading.flat_speed(subject, divided.room + 11 * freed)
    cheap = reading.cheap(subject, rounds=2)
    bare = reading.cheap(replace(subject, config=replace(subject.config, novelty_share=0.0)), rounds=1)
    full = reading.full(subject, 700)
    decoding = reading.decoding(subject, new=4, rounds=2)
    batch = reading_batches.batch(subject, size=3, new=2, rounds=2)
    speed = reading.speed(subject, 500, new=4)
    assert subject.adapter._hooks  # the seam is on again
    assert (flat["cycles"], flat["cycles_compared"]) == (11, 1)
    assert sum(cheap["shares_of_cycle"].values()) == pytest.approx(1.0, abs=0.001)
    assert all(0 < share < 1 for share in cheap["shares_of_cycle"].values())
    assert len(cheap["shares_of_cycle"]) == 7
    assert "head and novelty" not in bare["shares_of_cycle"]
    assert bare["plain_parts_seconds"]["head"] == 0
    assert len(set(full["pieces"].values())) == 1
    assert decoding["slots"] + len(subject.catalysts[0]) + 4 == subject.config.budget
    assert decoding["seconds_per_token"]["count"] == batch["texts"]["count"] == 2
    assert (speed["tokens_read"], "nll" in speed, speed["cycles"] > 0) == (500, True, True)


def test_memory_of_a_reading_and_a_limit_of_time(subject: Subject, codec: TextCodec) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("RssAnon is Linux's")
    row = reading.flat_memory(InfiniPot(subject.adapter, codec, subject.config), DOCUMENT, 900)
    assert row["tokens_read"] == 900
    assert row["rss_anon_peak_mb"] >= row["rss_anon_before_mb"] > 1
    stopped = reading.speed(subject, 5000, new=4, limit=0.0)
    assert stopped["tokens_read"] == subject.config.chunk


@pytest.mark.parametrize("how", ["torchao", "dynamic"])
def test_int8_changes_the_model_a_little_or_is_skipped_in_a_sentence(how: str, codec: TextCodec) -> None:
    config = PotConfig(budget=400, chunk=32, catalysts=("Who?",), max_new_tokens=16, question_tokens=16)
    with InfiniPot(Adapter(tiny_model("llama", **SIZE)), codec, config) as llm:
        subject = Subject.of(llm, DOCUMENT)
        before = reading.speed(subject, 450, new=4)
        after = reading.speed(subject, 450, new=4, how=how)
    if "skipped" in after:
        assert after["skipped"].endswith((".", ")"))
        return
    assert after["nll"] != before["nll"]
    assert after["nll"] == pytest.approx(before["nll"], rel=0.2)


def test_variants_change_one_thing_each() -> None:
    base = reading.Variant("first", "float32", 2, 512, 0.5)
    found = reading.variants(base, cores=2)
    assert found[0] == base
    assert len({v.name for v in found}) == len(found) == 13
    for other in found[1:]:
        assert replace(other, name="first") != base
        assert sum(getattr(other, f) != getattr(base, f) for f in ("dtype", "threads", "chunk", "change")) <= 1


def test_stamps_end_no_answer() -> None:
    scores = torch.zeros(1, 4)
    ending, free = reading_tools.Stamps([1, 3]), reading_tools.Stamps()
    assert ending(torch.zeros(1, 1), scores).isinf().tolist() == [[False, True, False, True]]
    assert free(torch.zeros(1, 1), scores) is scores
    assert len(ending.times) == len(free.times) == 1
    assert ending.between == []


# --- the command ---


def test_commands_in_fresh_processes_are_resumable(
    word_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    given = ["--model", str(word_model), "--dtype", "float32", "--threads", "1", "--budget", "512", "--new", "4"]
    given += ["--rounds", "1", "--out", str(out), "--tokens", "900"]
    commands = [["start"], ["speed", "--only", "chunks of 2048"], ["decode"], ["full", "--lengths", "600"]]
    commands += [["cheap"], ["batch", "--sizes", "2"], ["many", "--sizes", "2"]]
    for command in commands:
        reading.main([*command, *given])
    first = out.read_text()
    reading.main([*commands[1], *given])
    assert out.read_text() == first  # nothing was measured twice
    other = tmp_path / "other.md"
    other.write_text("The mill at Arden burned down in 1874. " * 40)
    reading.main([*commands[2], *given, "--document", str(other)])
    monkeypatch.setattr(reading, "__version__", "0.0")
    reading.main([*commands[2], *given])
    decoded = [row for row in reading_tools.load_rows(out) if row["measured"] == "decode"]
    assert len(decoded) == 3  # another document, and another release
    assert len({(row["document"], row["release"]) for row in decoded}) == 3
    assert len({reading_report.heading(row) for row in decoded}) == 3
    rows = [json.loads(line) for line in first.splitlines()]
    assert [r["measured"] for r in rows] == ["start", *["speed"] * 2, "decode", "full", *["cheap"] * 2, "batch", "many"]
    assert all((r["device"], r["document"].split()[0]) == ("cpu", "hollin_valley.md") for r in rows)
    assert all(r["cpu"] and r["cores"] and r["torch"] and r["transformers"] and r["dtype"] == "float32" for r in rows)
    capsys.readouterr()
    reading.main(["report", "--out", str(out)])
    page = capsys.readouterr().out
    assert sum(line.startswith("| ---") for line in page.splitlines()) == 7 + 2
    assert str(word_model) not in first


def test_flat_in_fresh_processes(word_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("RssAnon is Linux's")
    out = tmp_path / "rows.jsonl"
    given = ["--model", str(word_model), "--dtype", "float32", "--threads", "1", "--budget", "512", "--out", str(out)]
    reading.main(["flat", *given, "--tokens", "1500", "--lengths", "800"])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["part"] for r in rows] == ["speed", "memory"]
    assert rows[1]["tokens_read"] == 800
    reading.main(["report", "--out", str(out)])
    assert "late to early" in capsys.readouterr().out


def test_rows_of_other_settings_are_measured(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    calls: list[int] = []

    def work(value: int) -> dict[str, Any]:
        calls.append(value)
        return {"value": value}

    for budget in (1, 2, 1):
        Rows(out, {"budget": budget}).measure({"measured": "x"}, work, budget)
    assert calls == [1, 2]
    assert [r["value"] for r in reading_tools.load_rows(out)] == [1, 2]


def test_users_mistakes_are_sentences(subject: Subject) -> None:
    with pytest.raises(SystemExit, match="whole cycles: give more --tokens"):
        reading.flat_speed(subject, 100)
    with pytest.raises(SystemExit, match="has no room"):
        reading.decoding(subject, new=400, rounds=1)
    with pytest.raises(SystemExit, match="needs --out"):
        reading.main(["report"])
    with pytest.raises(SystemExit, match=r"there is no document nothing\.md"):
        reading.main(["decode", "--document", "nothing.md"])
