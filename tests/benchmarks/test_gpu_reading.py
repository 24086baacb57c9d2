"""The GPU script, on a CPU: it runs alone, says what it lacks, and counts the operations of the model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_model

from infinipot_llm.models.adapter import Adapter

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # scripts, not a package

import gpu_reading
import reading

SIZE = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def test_the_gpu_script_runs_tiny_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    gpu_reading.main(["--device", "cpu", "--tiny", "--tokens", "3000", "--budgets", "600", "--new", "4"])
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert row["reading"]["tokens"] == 3000
    assert len(row["reading"]["tokens_per_second_over_time"]) >= 10
    assert 0 < row["share_of_limit"] < 1
    assert row["peak_above_weights_mb"] is row["waiting"]["waits"] is None
    assert row["decoding"]["tokens"] == 3


def test_the_gpu_script_needs_one_file_beside_it(tmp_path: Path) -> None:
    assert gpu_reading.Stamps is reading.Stamps
    folder = Path(gpu_reading.__file__).parent
    for name in ("gpu_reading.py", "reading_tools.py"):
        shutil.copy(folder / name, tmp_path)
    command = [sys.executable, str(tmp_path / "gpu_reading.py"), "--help"]
    assert "--tiny" in subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_operations_are_those_of_the_model() -> None:
    adapter = Adapter(tiny_model("llama", **SIZE, num_key_value_heads=2, head_dim=8))
    count = gpu_reading.Operations(adapter)
    count.forward(1, 10)
    projections = 32 * 32 + 2 * 32 * 16 + 32 * 32  # q, k and v, o
    assert count.total == 2 * (2 * (projections + 3 * 32 * 32) + 4 * 10 * 4 * 8)
    before = count.total
    count.forward(3, 3)  # they see 1, 2 and 3 slots
    assert count.total - before == 3 * 2 * 2 * (projections + 3 * 32 * 32) + 2 * 4 * 6 * 4 * 8
    adapter.close()


def test_without_a_gpu_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device"):
        gpu_reading.main([])
