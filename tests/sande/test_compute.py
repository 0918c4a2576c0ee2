"""The type that models compute in: how it is decided, on either kind of processor, and that everything asks there."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from sande import compute
from sande.config import Training
from sande.errors import UserError
from sande.models import loading
from sande.prompts import encode
from sande.training.fit import fit
from sande.types import Example, LanguageModel, Run

ROOT = Path(__file__).parents[2]
# Below AVX-512 oneDNN has no products in bfloat16 that are quick: a processor with it then behaves as one without.
WITHOUT_AVX512 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
NewRun = Callable[..., Run]


@pytest.fixture(autouse=True)
def _decided_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(compute.VARIABLE, raising=False)
    compute.compute_type.cache_clear()
    yield
    compute.compute_type.cache_clear()


@pytest.fixture(params=["bf16", "fp32"])
def decided(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Either decision, by the variable."""
    monkeypatch.setenv(compute.VARIABLE, request.param)
    return str(request.param)


def in_process(code: str, **environment: str) -> list[str]:
    """Words that some code prints in a fresh process: libraries read these variables when they are loaded."""
    kept = {name: value for name, value in os.environ.items() if name not in (*WITHOUT_AVX512, compute.VARIABLE)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=kept | environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("ratio", "listed", "expected"),
    [
        *((0.2, [], "bf16"), (0.5, [], "bf16"), (0.9, [], "fp32"), (2.0, [], "fp32"), (80.0, [], "fp32")),
        # A library may not use instructions that are there.
        *((0.5, ["BF16"], "bf16"), (2.0, ["BF16"], "fp32"), (80.0, ["BF16"], "fp32")),
    ],
)
def test_a_processor_computes_in_bfloat16_where_its_products_are_quicker(
    ratio: float, listed: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(compute, "_bf16_instructions", lambda: listed)
    monkeypatch.setattr(compute, "_PAUSE", 0)
    monkeypatch.setattr(compute, "bf16_over_fp32", lambda: ratio)
    assert compute.compute_type() == expected
    assert compute.dtype() == {"bf16": torch.bfloat16, "fp32": torch.float32}[expected]


@pytest.mark.parametrize(("listed", "ratios"), [(["BF16"], [1.5, 9.0, 0.5]), ([], [0.7, 0.2, 2.0])])
def test_a_busy_machine_does_not_decide(
    listed: list[str], ratios: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(ratios)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(compute, "_bf16_instructions", lambda: listed)
    monkeypatch.setattr(compute, "_PAUSE", 0)
    monkeypatch.setattr(compute, "bf16_over_fp32", lambda: next(left))
    assert compute.compute_type() == ("bf16" if listed else "fp32")
    assert not list(left), "it was measured until it was what the processor lists"


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_gpu_is_asked_and_not_timed(has_bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    monkeypatch.setattr(compute, "bf16_over_fp32", lambda: pytest.fail("timed"))
    assert compute.compute_type() == ("bf16" if has_bf16 else "fp32")


def test_it_is_decided_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ratios = iter([0.5, 80.0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(compute, "bf16_over_fp32", lambda: next(ratios))
    monkeypatch.setattr(compute, "_bf16_instructions", lambda: ["BF16"])
    assert [compute.compute_type(), compute.compute_type()] == ["bf16", "bf16"]


def test_the_variable_decides_before_anything_is_measured(decided: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "bf16_over_fp32", lambda: pytest.fail("timed"))
    assert (compute.compute_type(), compute.expected_type()) == (decided, decided)


def test_another_word_in_the_variable_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compute.VARIABLE, "fp16")
    with pytest.raises(UserError, match=r"SANDE_COMPUTE_TYPE: 'fp16' is not a compute type; set it to bf16 or fp32"):
        compute.compute_type()


def test_this_machine_is_decided_by_its_products_and_so_it_is_expected() -> None:
    """On a processor with quick bfloat16 this is one kind, elsewhere the other; the next test always is the other."""
    code = "from sande import compute; print(compute.expected_type(), compute.compute_type(), compute.bf16_over_fp32())"
    expected, found, ratio = in_process(code)
    assert found == ("bf16" if float(ratio) < compute.FASTER else "fp32") or torch.cuda.is_available()
    assert expected == found


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU decides")
def test_a_processor_without_avx512_computes_in_float32() -> None:
    code = (
        "from sande import compute; print(compute.expected_type(), compute.compute_type(), compute.instruction_set())"
    )
    expected, found, *instructions = in_process(code, **WITHOUT_AVX512)
    assert (expected, found) == ("fp32", "fp32")
    assert "AVX512" not in instructions
    assert {"(oneDNN", "up", "to", "AVX2)"} <= set(instructions)


def test_a_precision_that_is_set_holds_and_auto_is_the_decision(decided: str) -> None:
    assert [compute.resolve(each) for each in ("bf16", "fp32", "auto")] == ["bf16", "fp32", decided]
    assert Training().precision == "auto"


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_a_training_computes_in_it_and_says_so(
    decided: str, precision: str, tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    used: list[bool] = []
    tiny.model.get_decoder().register_forward_pre_hook(lambda *_: used.append(torch.is_autocast_enabled("cpu")))
    run = new_run()
    settings = Training(max_steps=1, batch_size=2, precision=precision)  # type: ignore[arg-type]
    fit(tiny, encode(tiny.tokenizer, few_rows[:2]), settings, run, "lesson")
    expected = decided if precision == "auto" else precision
    assert run.facts["lesson"]["compute_type"] == expected
    assert used[0] == (expected == "bf16")
    assert {weight.dtype for weight in tiny.model.parameters()} == {torch.float32}


def test_what_is_only_read_has_weights_of_that_type(decided: str, tiny: LanguageModel) -> None:
    read = loading.in_compute_type(tiny)
    assert read.model.dtype == compute.dtype()
    assert (read.model is tiny.model) == (decided == "fp32"), "no copy where there is nothing to change"


def test_a_stored_model_has_the_same_numbers_in_either_type(tiny: LanguageModel, tmp_path: Path) -> None:
    loading.round_as_stored(tiny, torch.float32)
    rounded = {name: weight.clone() for name, weight in tiny.model.state_dict().items()}
    loading.save(tiny, tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        loaded = loading.load_folder(tmp_path, dtype)
        assert loaded.model.dtype == dtype
        assert all(torch.equal(weight.float(), rounded[name]) for name, weight in loaded.model.state_dict().items())


def test_instructions_are_those_that_pytorch_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch.backends.cpu.get_cpu_capability() in compute.instruction_set()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert compute.instruction_set() == "CUDA 9.0"


def test_waiting_threads_spin_briefly_unless_the_user_says_how() -> None:
    code = "import os, sande; print(os.environ.get('GOMP_SPINCOUNT'))"
    assert in_process(code, GOMP_SPINCOUNT="7") == ["7"]
    bare = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    for environment, expected in ((bare, "1000"), (bare | {"OMP_WAIT_POLICY": "passive"}, "None")):
        done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.split() == [expected], done.stderr
