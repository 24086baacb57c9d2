"""Where models run and in which dtype: what is asked for, what "auto" means, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, tiny_model

from infinipot_llm.errors import ModelError
from infinipot_llm.models import device
from infinipot_llm.models.device import bf16_speedup, choose_device, choose_dtype
from infinipot_llm.models.load import load_model

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def _fresh() -> Iterator[None]:
    bf16_speedup.cache_clear()
    yield
    bf16_speedup.cache_clear()


@pytest.mark.parametrize(("speedup", "expected"), [(0.1, torch.float32), (1.4, torch.float32), (4.0, torch.bfloat16)])
def test_auto_is_bf16_where_a_cpu_is_faster_at_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, speedup: float, expected: torch.dtype
) -> None:
    monkeypatch.setattr(device, "bf16_speedup", lambda: speedup)
    assert choose_dtype("auto", CPU) == expected
    adapter, _ = load_model(str(folder), device="cpu")
    assert adapter.dtype == expected
    asked, _ = load_model(str(folder), device="cpu", dtype="float32")
    assert asked.dtype == torch.float32  # whatever the CPU is good at


@pytest.mark.usefixtures("_fresh")
def test_the_speed_is_that_of_products_of_both_dtypes_and_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that lets bf16 take a third of the time."""
    now, multiplied = [0.0], []
    true_matmul = torch.Tensor.__matmul__

    def multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        multiplied.append(left.dtype)
        now[0] += 1.0 if left.dtype == torch.bfloat16 else 3.0
        return true_matmul(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", multiply)
    monkeypatch.setattr(device.time, "perf_counter", lambda: now[0])
    assert bf16_speedup() == pytest.approx(3.0)
    count = len(multiplied)
    assert bf16_speedup() == pytest.approx(3.0)
    assert len(multiplied) == count
    assert multiplied.count(torch.bfloat16) == multiplied.count(torch.float32) > 1


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match="unknown dtype 'int8': give auto, float32"):
        choose_dtype("int8", CPU)
    with pytest.raises(ModelError, match="unknown device 'tpu9x'"):
        choose_device("tpu9x")
    assert choose_device("cpu") == CPU
