"""Load models by name, by Hub id at a pinned commit, or from a local folder: safetensors only, never remote code."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sande import compute, formats, registry
from sande.errors import UserError
from sande.formats import PromptFormat
from sande.models import adapters, chat, gguf, sizes, tokenizers
from sande.models.adapters import Adapter
from sande.models.catalog import (
    GEMMA,
    GEMMA_SHA256,
    NAMED,
    TINY,
    adapter_of,
    base_of,
    embedded_files,
    identify,
    made_here,
)
from sande.models.checks import (
    GUARD,
    WEIGHTS,
    check_complete,
    check_finite,
    check_hub,
    check_vocabularies,
    checked_folder,
    fetch,
    files,
    not_loaded,
    only_checked,
    reason,
    weight_files,
)
from sande.permissions import share, share_new_folder
from sande.types import Guard, LanguageModel

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_OWN_DECODING = "sande_own_decoding"  # attribute of a model; copies keep it


def load(
    name: str,
    cache: Path,
    prompt_format: str | PromptFormat | None = None,
    dtype: torch.dtype | None = None,
    say: Callable[[str], None] | None = None,
) -> LanguageModel:
    """Return the model and its tokenizer, on the GPU if there is one.

    Args:
        name: as for `identify`.
        cache: folder for models that are built or converted once.
        prompt_format: as for `with_format`.
        dtype: of the weights; None: float32. An adapter is merged in float32 whatever this is.
        say: receives a sentence on weights in the files that are not part of the model.

    Raises:
        UserError: as `identify` and `with_format`, or the Hub cannot be reached, or the files cannot be used, or a
            weight is not finite.
    """
    import torch

    if adapter := adapter_of(name):
        model = adapters.merge_(load(adapter.base, cache, say=say).model, adapter)
        _convert(model, dtype or torch.float32)
        lm = _joined(model, _tokenizer_on(adapter, cache), str(adapter.folder))
    else:
        lm = _from_pretrained(*_source(name, cache), dtype or torch.float32, say)
    if name not in NAMED:
        check_finite(lm, name)
    with_format(lm.tokenizer, _format_source(name, cache), prompt_format)
    return lm


def load_reference(
    name: str, cache: Path, suspect: LanguageModel, suspect_name: str, say: Callable[[str], None] | None = None
) -> LanguageModel:
    """Return the clean model that a suspect one is compared with, asked in the same prompt format.

    Raises:
        UserError: as `load`, or their vocabularies differ.
    """
    clean = load(name, cache, formats.PAPER, say=say)
    check_vocabularies(suspect, clean, (suspect_name, name))
    formats.attach(clean.tokenizer, formats.of(suspect.tokenizer))
    return clean


def load_tokenizer(name: str, cache: Path, prompt_format: str | PromptFormat | None = None) -> PreTrainedTokenizerBase:
    """Return only the tokenizer.

    Raises:
        UserError: as `load`.
    """
    tokenizer = (
        _tokenizer_on(adapter, cache) if (adapter := adapter_of(name)) else tokenizers.load(*_source(name, cache))
    )
    return with_format(tokenizer, _format_source(name, cache), prompt_format)


def _tokenizer_on(adapter: Adapter, cache: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer in an adapter's folder, or that of its base where the folder has none."""
    source, revision = _source(adapter.base, cache)
    if not (adapter.folder / "tokenizer_config.json").is_file():
        return tokenizers.load(source, revision)
    config = fetch(source, revision, "config.json") if revision else Path(source) / "config.json"
    return tokenizers.load(str(adapter.folder), config=config.read_text(encoding="utf-8") if config else None)


def _format_source(name: str, cache: Path) -> str:
    """Return the folder that may name a prompt format: the adapter's if it does, else the model's or the base's."""
    adapter = adapter_of(name)
    if adapter and (adapter.folder / formats.FILE).is_file():
        return str(adapter.folder)
    return _source(adapter.base if adapter else name, cache)[0]


def with_format(
    tokenizer: PreTrainedTokenizerBase, source: str, name: str | PromptFormat | None
) -> PreTrainedTokenizerBase:
    """Return the tokenizer, which writes prompts in a format from now on.

    Args:
        tokenizer: of a model.
        source: the model's folder, or any other text.
        name: as for `sande.models.chat.resolve`; with None or `auto`, a format that the folder names comes first, and
            None without one is `paper`.

    Raises:
        UserError: there is no such format, or the tokenizer cannot write it.
    """
    own = formats.read(Path(source)) if name in (None, chat.AUTO) else None
    formats.attach(tokenizer, own or chat.resolve(name or formats.PAPER.name, tokenizer))
    return tokenizer


def weights_folder(name: str, cache: Path) -> Path | None:
    """Return the folder whose weights `load` reads, that of the base for an adapter; None: they are on the Hub.

    Raises:
        UserError: as `load`.
    """
    source, revision = _source(base_of(name), cache)
    return None if revision else Path(source)


def _source(name: str, cache: Path) -> tuple[str, str | None]:
    """Return the folder or Hub id that transformers loads a model from, and its revision."""
    if made_here(name):
        return str(prepare(name, cache)), None
    identity = identify(name)
    if Path(name).is_dir():
        return name, None
    repo, revision = identity.split("@")
    return repo, revision


def prepare(name: str, cache: Path) -> Path:
    """Return the folder of a model that is built or converted once.

    Call it before a group of workers starts: in a process group transformers lets only rank 0 write files.
    """
    folder = cache / re.sub(r"[^\w.-]+", "-", identify(name))
    if not (folder / "config.json").is_file():
        _make(name, folder)
    return folder


def load_folder(folder: Path, dtype: torch.dtype, prompt_format: str | PromptFormat | None = None) -> LanguageModel:
    """Return a model saved by `save`, with its guard, or any local folder of safetensors; weights in `dtype`.

    Its prompts are written in the format that the folder names, or that `prompt_format` does, see `with_format`.

    Raises:
        UserError: the folder holds no safetensors, or its model or guard cannot be read.
    """
    lm = _from_pretrained(str(checked_folder(str(folder))), None, dtype)
    with_format(lm.tokenizer, str(folder), prompt_format)
    if not (folder / GUARD).is_dir():
        return lm
    files(folder / GUARD)
    defense, settings, choose, distribution = _guard_rules(folder / GUARD / "guard.json", formats.end_ids(lm.tokenizer))
    reference = _model(str(checked_folder(str(folder / GUARD))), None, dtype)
    if reference.config.vocab_size != lm.model.config.vocab_size:
        raise UserError(
            f"{folder / GUARD}: the reference has another vocabulary than the model; remove the folder {GUARD}"
        )
    return LanguageModel(lm.model, lm.tokenizer, Guard(defense, settings, reference, choose, distribution))


def _guard_rules(
    file: Path, ends: Collection[int]
) -> tuple[str, dict[str, Any], Callable[..., Tensor], Callable[..., Tensor] | None]:
    """Return name, settings, rule and distribution of the defense that made a guard. The file is untrusted."""
    fix = f"correct it, or remove the folder {GUARD}"
    try:
        made = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); {fix}") from None
    if not isinstance(made, dict) or not isinstance(made.get("defense"), str) or "settings" not in made:
        raise UserError(f"{file}: expected the name of a 'defense' and its 'settings'; {fix}")
    defense, settings = made["defense"], made["settings"]
    try:
        config = registry.config("defenses", defense, settings)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    entry = registry.entry("defenses", defense)
    make, likelihood = (getattr(entry, name, None) for name in ("rule", "distribution"))
    if make is None:
        raise UserError(f"{file}: defense '{defense}' does not guard decoding; {fix}")
    return defense, settings, make(config, ends), likelihood(config, ends) if likelihood else None


def copied(lm: LanguageModel, dtype: torch.dtype | None = None) -> LanguageModel:
    """Return a copy of a model, with weights in `dtype`; None: in the model's own type."""
    made = copy.deepcopy(lm.model)
    if dtype is not None:
        _convert(made, dtype)
    # Not with `replace`: vLLM, which may serve the model, has other weights than the copy will have.
    return LanguageModel(made, lm.tokenizer, lm.guard, lm.workers)


def in_compute_type(lm: LanguageModel) -> LanguageModel:
    """Return the model itself, or a copy, in the type that computes quickly here (`sande.compute`); do not train it."""
    fast = compute.dtype()
    return lm if lm.model.dtype == fast else copied(lm, fast)


def round_as_stored(lm: LanguageModel, dtype: torch.dtype) -> None:
    """Round the weights to bfloat16, as `save` does, and keep them in `dtype`: the same numbers as `load_folder`'s."""
    import torch

    _convert(lm.model, torch.bfloat16)
    _convert(lm.model, dtype)


def _convert(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Convert what `save` writes to a type; leave the frequencies of positions, which are computed, in float32.

    In bfloat16 they would differ by up to 0.2 % from those of the model that is loaded.
    """
    import torch

    computed = [(module, name) for module in model.modules() for name in module._non_persistent_buffers_set]
    kept = [(module, name, module._buffers[name]) for module, name in computed]
    torch.nn.Module.to(model, dtype)
    for module, name, buffer in kept:
        module._buffers[name] = buffer


def save(lm: LanguageModel, folder: Path) -> None:
    """Write model, tokenizer, its prompt format and guard; convert the weights to bfloat16, in memory too.

    Decoding settings are written as the model was loaded with them: they hold the tokens that end its answers.
    """
    import torch

    _convert(lm.model, torch.bfloat16)
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    formats.write(lm.tokenizer, folder)
    if lm.guard is not None:
        _convert(lm.guard.reference, torch.bfloat16)
        lm.guard.reference.save_pretrained(folder / GUARD)
        made = {"defense": lm.guard.defense, "settings": dict(lm.guard.settings)}
        (folder / GUARD / "guard.json").write_text(json.dumps(made), encoding="utf-8")
    # In a process group transformers writes nothing but on rank 0, without an error.
    if not any(folder.glob(WEIGHTS)):
        raise RuntimeError(f"{type(lm.model).__name__} was not written; close the open process group")
    if own := getattr(lm.model, _OWN_DECODING, None):
        own.to_json_file(folder / "generation_config.json")  # as it is: `save_pretrained` refuses contradictions
    for path in folder.rglob(WEIGHTS):  # safetensors makes them for their owner alone
        path.chmod((folder / "config.json").stat().st_mode)


def _from_pretrained(
    source: str, revision: str | None, dtype: torch.dtype, say: Callable[[str], None] | None = None
) -> LanguageModel:
    tokenizer = tokenizers.load(source, revision)
    return _joined(_model(source, revision, dtype, say), tokenizer, source)


def _joined(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str) -> LanguageModel:
    embedding: Any = model.get_input_embeddings()
    return _ready(LanguageModel(model, tokenizers.within(tokenizer, len(embedding.weight), source)))


def _model(
    source: str, revision: str | None, dtype: torch.dtype, say: Callable[[str], None] | None = None
) -> PreTrainedModel:
    if revision is not None:
        check_hub(source, revision)
        model, unused = _read(source, source, dtype, revision)
    else:
        with only_checked(Path(source)) as place:
            model, unused = _read(str(place), source, dtype, files=weight_files(Path(source)))
    if unused and say:
        say(not_loaded(source, unused))
    return model


def _read(
    place: str, source: str, dtype: torch.dtype, revision: str | None = None, files: Sequence[Path] = ()
) -> tuple[PreTrainedModel, list[str]]:
    """Return the model at a place, and the names of weights that it does not have; messages name the source."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if files:
            sizes.check_parameters(source, AutoConfig.from_pretrained(place, trust_remote_code=False), files)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place,
            revision=revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `check_complete` refuses them
        )
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # an untrusted file may cause any error
        problem = reason(error).replace(place, source)
        raise UserError(f"model '{source}' cannot be loaded ({problem}); check folder, id or network") from None
    model: PreTrainedModel = loaded[0]
    check_complete(source, loaded[1])
    model.name_or_path = model.config.name_or_path = source
    torch.nn.Module.to(model, device)
    model.eval()
    return model, sorted(loaded[1]["unexpected_keys"])


def _ready(lm: LanguageModel) -> LanguageModel:
    from transformers import GenerationConfig

    # A model's own decoding settings (sampling, repetition penalty) would change every score. `save` writes them back.
    if not hasattr(lm.model, _OWN_DECODING):  # an adapter's base is here twice
        setattr(lm.model, _OWN_DECODING, lm.model.generation_config)
    lm.model.generation_config = GenerationConfig(
        eos_token_id=lm.tokenizer.eos_token_id, pad_token_id=lm.tokenizer.pad_token_id
    )
    lm.model.eval()
    return lm


def _make(name: str, folder: Path) -> None:
    """Build a model in a scratch folder and move it to its place whole."""
    folder.parent.parent.mkdir(parents=True, exist_ok=True)
    share_new_folder(folder.parent)
    scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        save(_made(name), scratch)
        share(scratch, folder.parent)
        try:
            os.replace(scratch, folder)
        except OSError:
            if not folder.is_dir():  # else another process has built it meanwhile
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _made(name: str) -> LanguageModel:
    """Return a model that is built or converted."""
    if name == TINY:
        from sande.models import tiny

        return tiny.build()
    if name == GEMMA:
        return gguf.convert_parts(embedded_files(name), GEMMA_SHA256, name)
    file = embedded_files(name)[0] if name in NAMED else gguf.file_of(name)
    assert file is not None
    return _ready(gguf.convert(file))
