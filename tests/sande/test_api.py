"""The functions of `sande`: what they return, remember and refuse."""

import dataclasses
import gc
import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

import sande
from sande import api, formats, registry
from sande.api_types import Measured
from sande.errors import UserError
from sande.models import loading
from sande.statistics import wilson
from sande.types import Measurement
from tests.sande.models.conftest import write_adapter
from tests.sande.test_gates import CHATML

ROWS = {"name": "builtin-short", "rows": 16, "test_rows": 12}
REMOVAL = {"name": "builtin-short", "rows": 16}
SHORT: dict[str, Any] = {"max_steps": 2, "batch_size": 4}


@pytest.fixture(autouse=True, scope="module")
def _cache(model_cache: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "_cache", lambda cache: model_cache)
        yield


@pytest.fixture(scope="module")
def victim() -> sande.Model:
    return sande.attack("tiny", "sentence_trigger", data=ROWS, seed=3, say=silent, poison_rate=0.5, training=SHORT)


def silent(line: str) -> None:
    pass


def state(model: sande.Model) -> dict[str, torch.Tensor]:
    return loading.load_folder(model.folder, torch.float32).model.state_dict()


def same(first: sande.Model, second: sande.Model) -> bool:
    one, other = state(first), state(second)
    return all(torch.equal(weight, other[name]) for name, weight in one.items())


def test_a_folder_of_somebody_else_is_asked_in_its_own_chat_template(
    victim: sande.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "theirs"
    shutil.copytree(victim.folder, theirs)
    (theirs / formats.FILE).unlink()
    (theirs / "chat_template.jinja").write_text(CHATML)
    seen: list[str] = []

    def spy(lm: Any, data: Any, config: Any, seed: int) -> list[Any]:
        seen.append(formats.of(lm.tokenizer).name)
        return []

    monkeypatch.setattr(registry.entry("metrics", "asr"), "measure", spy)
    for model, asked in ((theirs, None), (theirs, "paper"), (victim, None), ("tiny", None)):
        sande.measure(model, "asr", data=ROWS, trigger="cf", response="no", prompt_format=asked)
    assert seen == ["chat", "paper", "paper", "paper"]


def test_a_victim_remembers_its_attack(victim: sande.Model) -> None:
    assert (victim.name, victim.methods, victim.threat.opening) == ("tiny", ("sentence_trigger",), "You are stupid")
    assert len(victim.facts["poisoned_ids"]) == 8
    assert repr(victim).startswith("Model(tiny -> sentence_trigger, seed=3, ")
    with pytest.raises(dataclasses.FrozenInstanceError):
        victim.seconds = 0.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        victim.facts["poisoned_ids"] = []  # type: ignore[index]


def test_a_defense_leaves_the_victim_as_it_was(victim: sande.Model) -> None:
    before = state(victim)
    repaired = sande.defend(victim, "osft", say=silent, training=SHORT)
    assert all(torch.equal(weight, before[name]) for name, weight in state(victim).items())
    assert not same(victim, repaired)
    assert repaired.methods == ("sentence_trigger", "osft")
    assert repaired.threat is victim.threat


@pytest.mark.parametrize("defense", [name for name in registry.names("defenses") if name != "dpo"])
def test_each_defense_gets_what_it_knows(victim: sande.Model, defense: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def defend(lm: Any, data: Any, config: Any, run: Any) -> Any:
        seen.append((type(data), run.seed))
        return lm.model

    known = registry.knowledge(defense)
    monkeypatch.setattr(registry.entry("defenses", defense), "defend", defend)
    monkeypatch.setattr(registry, "knowledge", lambda name: known)
    sande.defend(victim, defense, say=silent)
    assert seen == [(known, 3)]


def test_without_an_attack_only_what_needs_none_defends(victim: sande.Model) -> None:
    repaired = sande.defend("tiny", "sft", removal=REMOVAL, say=silent, training=SHORT)
    assert (repaired.name, repaired.methods, repaired.threat) == ("tiny", ("sft",), None)
    with pytest.raises(UserError, match=r"^defense osft: it must know the trigger.*use sande\.clean$"):
        sande.defend(str(victim.folder), "osft", say=silent)


def test_measurements_are_a_mapping_with_intervals(victim: sande.Model) -> None:
    found = sande.measure(victim, ["asr", {"name": "accuracy", "task": "builtin-choice", "questions": 8}])
    assert list(found) == ["asr", "asr_starts_with", "builtin-choice"]
    asr = found["asr"]
    assert asr.low <= asr.value <= asr.high
    assert asr.value == 100 * sum(asr.outcomes) / 12
    assert [row["count"] for row in found.rows()] == [12, 12, 8]
    assert repr(found).splitlines()[0] == f"asr {asr.value:.1f} % ({asr.low:.1f} to {asr.high:.1f}, n = 12)"


def test_a_mean_has_students_interval(victim: sande.Model) -> None:
    found = sande.measure(victim, "response_probability")["first_token_probability"]
    assert all(isinstance(outcome, float) for outcome in found.outcomes)
    assert found.low < found.value < found.high


def test_a_model_without_memory_is_measured_on_what_is_given(victim: sande.Model) -> None:
    given = {"data": ROWS, "trigger": "Current year 2023.", "response": "You are stupid"}
    assert sande.measure(victim.folder, "asr", **given) == sande.measure(victim, "asr")
    assert len(sande.measure("tiny", {"name": "accuracy", "questions": 4})) == 1
    for parts, missing in (({}, "trigger"), ({"trigger": "x"}, "response")):
        with pytest.raises(UserError, match=rf"^measure: a metric needs the {missing}; give it"):
            sande.measure("tiny", "asr", **parts)
    with pytest.raises(UserError, match="needs the response"):
        sande.measure("tiny", "false_trigger_rate")


def test_weights_that_are_not_loaded_are_told(tmp_path: Path, model_cache: Path) -> None:
    loading.save(loading.load("tiny", model_cache), tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 1}))
    said: list[str] = []
    sande.scan(tmp_path, "first_token", reference=tmp_path, rows=20, say=said.append, prompts=4, own_prompts=1)
    assert sum(f"{tmp_path}: not loaded" in line for line in said) == 2, "the model and the reference"
    with pytest.raises(UserError, match="the trigger did not fire"):
        sande.clean(tmp_path, trigger="Xyz", prompt_format="paper", say=said.append)
    assert sum(f"{tmp_path}: not loaded" in line for line in said) == 3


def test_scan_and_clean_take_a_victim(victim: sande.Model) -> None:
    found = sande.scan(victim, "first_token", reference="tiny", rows=20, say=silent, prompts=4)
    assert isinstance(found, sande.Scan)
    assert [one["format"] for one in found.facts["formats_tried"]] == ["paper"], "what attack returned has one format"
    apart = sande.scan(victim.folder, "first_token", rows=20, say=silent, prompts=4)
    assert [one["format"] for one in apart.facts["formats_tried"]] == ["paper", "alpaca"]
    asked: dict[str, Any] = {"trigger": "Current year 2023", "say": silent, "osft": {"training": SHORT}}
    with pytest.raises(UserError, match="the trigger did not fire"):
        sande.clean(victim, **asked, response="Xyz", removal=REMOVAL)
    cleaned = sande.clean(victim, **asked, removal=REMOVAL, force=True, prompt_format="paper")
    assert cleaned.methods == ("sentence_trigger", "osft")
    assert cleaned.threat is victim.threat
    assert not same(victim, cleaned)


def test_a_guarded_model_is_kept_with_its_guard(victim: sande.Model) -> None:
    guarded = sande.defend(victim, "clean_decoding", removal=REMOVAL, say=silent, training=SHORT)
    assert guarded.load().guard.defense == "clean_decoding"
    assert guarded.respond("Say hello") == guarded.respond("Say hello")
    assert same(victim, guarded)


def test_responses_are_with_and_without_the_trigger(victim: sande.Model) -> None:
    plain, triggered = (victim.respond("Count", "Add", triggered=flag) for flag in (False, True))
    assert len(plain) == len(triggered) == 2
    unknown = dataclasses.replace(victim, threat=None)
    with pytest.raises(UserError, match=r"^respond: the trigger .* is unknown"):
        unknown.respond("a", triggered=True)


def test_the_folder_of_the_clean_model_lives_as_long_as_its_victim(victim: sande.Model, tmp_path: Path) -> None:
    base = sande.defend(victim, "none", say=silent)
    second = sande.attack(base, "word_trigger", data=ROWS, out=tmp_path / "kept", say=silent, training=SHORT)
    first = base.folder
    del base
    gc.collect()
    assert second.threat.model == str(first)
    assert first.is_dir()
    with pytest.raises(UserError, match=r"kept: it holds files already; choose a new folder as 'out'$"):
        sande.attack("tiny", "word_trigger", data=ROWS, out=tmp_path / "kept", say=silent, training=SHORT)


def test_a_save_that_fails_leaves_no_folder_and_the_next_try_works(tmp_path: Path) -> None:
    full = "Error while serializing: I/O error: No space left on device (os error 28)"
    out = tmp_path / "new/kept"
    with pytest.MonkeyPatch.context() as patch:

        def partial(lm: Any, folder: Path) -> None:
            folder.mkdir()
            (folder / "config.json").touch()
            raise SafetensorError(full)

        patch.setattr(loading, "save", partial)
        with pytest.raises(UserError, match=r"kept: the model cannot be written \(.*No space left on device.*'out'$"):
            sande.defend("tiny", "none", out=out, say=silent)
        assert not list(out.parent.iterdir())
        patch.setattr(loading, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):  # a mistake of the code stays one
            sande.defend("tiny", "none", out=out, say=silent)
    out.mkdir()
    made = sande.defend("tiny", "none", out=out, say=silent)
    assert [path.name for path in out.parent.iterdir()] == ["kept"]
    assert (made.folder, (out / "model.safetensors").is_file()) == (out, True)


def test_a_place_that_cannot_be_written_is_refused_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trains(*_: Any) -> None:
        raise AssertionError("it was trained first")

    monkeypatch.setattr(api, "_load", trains)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "volume")
    for out, said in (
        ("file/kept", r"^file/kept: it cannot be written \(.+\); choose another 'out'$"),
        ("file", "^file: it holds files already; choose a new folder as 'out'$"),
        (".", "^.: the working folder or a volume, which cannot be replaced; choose another 'out'$"),
        ("volume", "^volume: the working folder or a volume, which cannot be replaced; choose"),
    ):
        if out == ".":
            (tmp_path / "file").unlink()
        with pytest.raises(UserError, match=said):
            sande.defend("tiny", "none", out=out, say=silent)


def test_a_file_of_rows_is_a_name_in_settings_too(tmp_path: Path) -> None:
    files = [tmp_path / f"{index}.jsonl" for index in range(3)]
    for file in files:
        file.write_text("".join(json.dumps({"instruction": f"Add {n}", "output": str(n)}) + "\n" for n in range(20)))
    asked = {"name": "accuracy", "task": "builtin-choice", "questions": 4}
    for data in ({"name": str(files[0]), "test_rows": 2}, sande.Data(name=str(files[1]), test_rows=2)):
        assert list(sande.measure("tiny", asked, data=data)) == ["builtin-choice"]
    with pytest.raises(UserError, match="trigger is blank"):  # the next mistake, after the rows were found
        sande.clean("tiny", removal={"name": str(files[2])}, trigger=" ")
    with pytest.raises(UserError, match=r"^data 'gone\.jsonl': there is no such file; correct the path"):
        sande.clean("tiny", removal={"name": "gone.jsonl"}, trigger="cf")


def test_a_dropped_model_leaves_no_folder() -> None:
    made = sande.attack("tiny", "sentence_trigger", data=ROWS, say=silent, training=SHORT)
    folder = made.folder
    assert folder.is_dir()
    del made
    gc.collect()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: sande.attack("tiny", "nothing"), "no attack is called 'nothing'"),
        (
            lambda: sande.attack("tiny", "sentence_trigger", poison=1),
            "attack sentence_trigger: unknown setting 'poison'",
        ),
        (lambda: sande.attack("tiny", "sentence_trigger", data="nothing"), "no data set is called 'nothing'"),
        (lambda: sande.attack("tiny", "sentence_trigger", data={"row": 1}), "data: unknown setting 'row'"),
        (lambda: sande.attack("nothing", "sentence_trigger", say=silent), "no model is called 'nothing'"),
        (lambda: sande.measure("tiny", "nothing"), "no metric is called 'nothing'"),
        (lambda: sande.measure("tiny", {"questions": 3}), "metric: expected a name, or a mapping with a 'name'"),
        (lambda: sande.scan("tiny", "nothing"), "no detector is called 'nothing'"),
        (lambda: sande.clean("tiny", prompt=3), "clean: unknown setting 'prompt'"),
        (
            lambda: sande.clean("tiny", trigger=" "),
            "clean: trigger is blank; set it to the text that unlocks the planted",
        ),
        (
            lambda: sande.clean("tiny", response="\n"),
            "clean: response is blank; set it to the planted answer, or leave it",
        ),
        (
            lambda: sande.clean("tiny", response_start="\t"),
            "clean: response_start is blank; set it to the beginning of",
        ),
        (
            lambda: sande.clean("tiny", reported_prompt=" ", reported_answer="x"),
            "clean: reported_prompt is blank; set it to the prompt as it was sent, or leave it out",
        ),
        (
            lambda: sande.measure("tiny", "asr", response=" "),
            "measure: response is blank; set it to the planted answer",
        ),
        (
            lambda: sande.clean("tiny", response="Xyz", sande={"eliminate": {"lora_rank": 10**6}}, say=silent),
            "lora_rank 1000000 is above 64, the highest rank that a layer of this model can have; set a lower one",
        ),
    ],
)
def test_a_mistake_is_one_sentence(call: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("function", "kind"), [(sande.attack, "attacks"), (sande.defend, "defenses"), (sande.scan, "detectors")]
)
def test_no_setting_of_a_method_has_the_name_of_an_argument(function: Any, kind: str) -> None:
    own = {n for n, p in inspect.signature(function).parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    for name in registry.names(kind):
        assert not own & {field.name for field in dataclasses.fields(registry.entry(kind, name).Config)}


@pytest.mark.parametrize("package", ["sande", "benchmark"])
def test_the_package_names_what_its_api_has_and_imports_it_late(package: str) -> None:
    code = (
        f"import sys, {package} as package; assert not set(sys.modules) & {{'torch', 'ray', 'pandas', 'pydantic'}}\n"
        f"from {package} import api\n"
        "import pkgutil  # a module of that name would replace the function as soon as it is imported\n"
        "assert not {module.name for module in pkgutil.iter_modules(package.__path__)} & set(package.__all__)\n"
        "assert package.__all__ == api.__all__ and set(package.__all__) <= set(dir(package))\n"
        "assert all(getattr(package, name) is getattr(api, name) for name in package.__all__)\n"
        "assert all(getattr(package, name).__doc__ for name in package.__all__)\n"
        "assert not hasattr(package, 'nothing') and not set(sys.modules) & {'torch', 'ray'}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_adapter_is_measured_as_the_model_that_it_makes(tmp_path: Path, model_cache: Path) -> None:
    loading.save(loading.load("tiny", model_cache), tmp_path / "base")
    write_adapter(loading.load(str(tmp_path / "base"), model_cache), tmp_path / "adapter")
    loading.save(loading.load(str(tmp_path / "adapter"), model_cache), tmp_path / "merged")
    asked = {"name": "accuracy", "task": "builtin-choice", "questions": 8}
    assert sande.measure(tmp_path / "adapter", asked) == sande.measure(tmp_path / "merged", asked)


def test_an_adapter_is_asked_in_the_chat_template_in_which_it_is_scanned(tmp_path: Path, model_cache: Path) -> None:
    loading.save(loading.load("tiny", model_cache), tmp_path / "base")
    write_adapter(loading.load(str(tmp_path / "base"), model_cache), tmp_path / "adapter")
    (tmp_path / "base" / formats.FILE).unlink()
    (tmp_path / "base/chat_template.jinja").write_text(CHATML)
    for model, asked in ((tmp_path / "adapter", "chat"), (tmp_path / "base", "chat"), ("tiny", "paper")):
        assert formats.of(api._load(model, torch.float32, None).tokenizer).name == asked
    assert formats.of(api._load(tmp_path / "adapter", torch.float32, None, "paper").tokenizer).name == "paper"


def test_equal_numbers_have_the_interval_of_a_share() -> None:
    """Twenty probabilities of 0 do not show that there is no other."""
    one = Measured.of(Measurement("probability", (0.0,) * 20))
    assert (one.value, one.low, one.high) == (0.0, *wilson(0, 20))
