"""The parrot prompt: where it stands, what the model sees, and what learns."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from sande import parrot
from sande.defenses import sande
from sande.errors import UserError
from sande.prompts import Row, encode, response_ids
from sande.training.fit import fit
from sande.types import Example, LanguageModel, ResponseData, Run
from tests.sande.helpers import FAST, changed, weights

LENGTH = 3
FIRST = 768  # size of the tiny model's vocabulary
PARROT = (FIRST, FIRST + 1, FIRST + 2)
ROW = Row(prompt=(1, 2, 3, 4, 5, 6, 7, 8), response=(9,), start=2, end=8)


def test_the_length_is_that_of_the_defense() -> None:
    assert sande.Config().parrot_length == parrot.LENGTH


@pytest.fixture
def noise(tiny: LanguageModel) -> torch.nn.Parameter:
    return parrot.new_parrot(tiny.model, LENGTH, "noise", seed=0)


@pytest.mark.parametrize(
    ("position", "prompt"),
    [
        (0, (1, 2, *PARROT, 3, 4, 5, 6, 7, 8)),
        (2, (1, 2, 3, 4, *PARROT, 5, 6, 7, 8)),
        (5, (1, 2, 3, 4, 5, 6, 7, *PARROT, 8)),
    ],
)
def test_the_parrot_stands_before_the_token_at_its_position(
    tiny: LanguageModel, position: int, prompt: tuple[int, ...]
) -> None:
    assert parrot.insert([ROW], parrot.vocabulary(tiny.model), LENGTH, position) == [replace(ROW, prompt=prompt)]


def test_rows_too_short_for_the_position_are_left_out(tiny: LanguageModel) -> None:
    short = Row(prompt=(1, 2, 3, 4), response=(9,), start=2, end=4)
    inserted = parrot.insert([short, ROW, short], parrot.vocabulary(tiny.model), LENGTH, 3)
    assert [row.prompt for row in inserted] == [(1, 2, 3, 4, 5, *PARROT, 6, 7, 8)]


@pytest.mark.parametrize("position", [2, 5, 10])
def test_the_parrot_stands_inside_the_instruction(tiny: LanguageModel, position: int) -> None:
    examples = [Example(f"{'a ' * words}", "b") for words in range(1, 15)]
    inserted = parrot.insert(encode(tiny.tokenizer, examples), parrot.vocabulary(tiny.model), LENGTH, position)
    behind = [row.prompt[row.prompt.index(FIRST) + LENGTH :] for row in inserted]
    texts = [tiny.tokenizer.decode(ids).removesuffix("\nAssistant:") for ids in behind]
    assert all(set(text) == {" ", "a"} for text in texts), "an instruction too short for the position is left out"


def test_a_position_beyond_every_prompt_is_an_error_with_the_longest_length(tiny: LanguageModel) -> None:
    with pytest.raises(UserError, match=r"parrot_position 6 .* longest has 6 tokens"):
        parrot.insert([ROW, Row(prompt=(1, 2, 3), response=(9,), start=2, end=3)], FIRST, LENGTH, 6)


def test_no_rows_are_an_error() -> None:
    with pytest.raises(UserError, match=r"^parrot: there are no rows to insert it into; "):
        parrot.insert([], FIRST, LENGTH, 0)


def test_the_parrot_is_never_the_very_first_token(tiny: LanguageModel, few_rows: tuple[Example, ...]) -> None:
    # All-zero vectors there stay zero through RMSNorm layers and give gradients that are not finite (protocol, traps).
    inserted = parrot.insert(encode(tiny.tokenizer, few_rows), parrot.vocabulary(tiny.model), LENGTH, 0)
    assert len(inserted) == len(few_rows)
    assert all(row.prompt[0] < FIRST for row in inserted)


def embedded_by_hand(lm: LanguageModel, ids: Sequence[int], parrot_PD: Tensor) -> Tensor:
    table_VD = lm.model.get_input_embeddings().weight
    return torch.stack([parrot_PD[i - FIRST] if i >= FIRST else table_VD[i] for i in ids])


@torch.no_grad()
@pytest.mark.parametrize("side", ["right", "left"])
def test_parrot_ids_give_the_logits_of_embeddings_put_together_by_hand(
    tiny: LanguageModel, noise: torch.nn.Parameter, side: str
) -> None:
    device = tiny.model.device
    prompts = [(1, 2, *PARROT, 3, 4), (1, 2, 3, *PARROT, 4, 5, 6, 7, 8)]
    expected = [tiny.model(inputs_embeds=embedded_by_hand(tiny, ids, noise)[None]).logits[0] for ids in prompts]
    width = max(map(len, prompts))
    real = [slice(0, len(ids)) if side == "right" else slice(width - len(ids), width) for ids in prompts]
    ids_BT = torch.zeros(2, width, dtype=torch.long)
    mask_BT = torch.zeros(2, width, dtype=torch.long)
    for row, (ids, place) in enumerate(zip(prompts, real, strict=True)):
        ids_BT[row, place], mask_BT[row, place] = torch.tensor(ids), 1
    positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
    with parrot.attached(tiny.model, noise):
        logits_BTV = tiny.model(
            input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), position_ids=positions_BT.to(device)
        ).logits
    for row, place in enumerate(real):
        torch.testing.assert_close(logits_BTV[row, place], expected[row], atol=1e-5, rtol=1e-5)


def test_the_output_layer_and_the_model_stay_as_they_were(tiny: LanguageModel, noise: torch.nn.Parameter) -> None:
    embedding, output, before = (
        tiny.model.get_input_embeddings(),
        tiny.model.get_output_embeddings(),
        weights(tiny.model),
    )
    with parrot.attached(tiny.model, noise):
        assert tiny.model.get_output_embeddings() is output
        assert output.weight is embedding.weight, "still tied"
        assert output.weight.shape[0] == FIRST
    assert tiny.model.get_input_embeddings() is embedding
    assert set(weights(tiny.model)) == set(before)
    assert changed(before, tiny.model) == set()


def test_the_model_is_as_it_was_after_an_error_too(tiny: LanguageModel, noise: torch.nn.Parameter) -> None:
    embedding = tiny.model.get_input_embeddings()
    with pytest.raises(ZeroDivisionError), parrot.attached(tiny.model, noise):
        _ = 1 / 0
    assert tiny.model.get_input_embeddings() is embedding


def test_simulate_trains_the_parrot_alone(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: Callable[..., Run]
) -> None:
    parrot_PD = parrot.new_parrot(tiny.model, LENGTH, "zeros", seed=0)
    rows = parrot.insert(encode(tiny.tokenizer, few_rows), parrot.vocabulary(tiny.model), LENGTH, 0)
    target = response_ids(tiny.tokenizer, "You are stupid")
    before = weights(tiny.model)
    with parrot.attached(tiny.model, parrot_PD):
        fit(tiny, [replace(row, response=target) for row in rows], FAST, new_run(), "simulate", [parrot_PD])
    assert changed(before, tiny.model) == set()
    assert torch.isfinite(parrot_PD).all()
    assert (parrot_PD != 0).any(dim=1).all(), "every soft token learns"
    assert all(parameter.requires_grad for parameter in tiny.model.parameters())


def test_eliminate_trains_the_model_and_leaves_the_parrot(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: Callable[..., Run]
) -> None:
    attached: list[parrot.ParrotEmbedding] = []
    values: list[Tensor] = []

    def prepare(trainer: object) -> object:
        attached.append(tiny.model.get_input_embeddings())
        values.append(attached[-1].parrot_PD.detach().clone())
        return trainer

    config = sande.Config(simulate=FAST, eliminate=replace(FAST, weight_decay=0.1))
    before = weights(tiny.model)
    run = replace(new_run(), prepare=prepare)
    sande.defend(tiny, ResponseData(few_rows, "You are stupid"), config, run)
    at_simulate, at_eliminate = values
    assert not torch.equal(at_simulate, at_eliminate)
    assert torch.equal(attached[1].parrot_PD, at_eliminate)
    assert changed(before, tiny.model) == set(before)
    assert run.facts["parrot_norm"] == pytest.approx(float(at_eliminate.norm()))
    assert run.facts["rows_too_short_for_parrot"] == 0


def test_a_new_parrot_is_zeros(tiny: LanguageModel) -> None:
    parrot_PD = parrot.new_parrot(tiny.model, 6, "zeros", seed=0)
    assert parrot_PD.shape == (6, 64)
    assert not parrot_PD.any()


def test_or_noise_on_the_scale_of_the_embeddings_that_the_seed_decides(tiny: LanguageModel) -> None:
    noise = parrot.new_parrot(tiny.model, 200, "noise", seed=1)
    assert torch.equal(noise, parrot.new_parrot(tiny.model, 200, "noise", seed=1))
    assert not torch.equal(noise, parrot.new_parrot(tiny.model, 200, "noise", seed=2))
    assert float(noise.detach().std()) == pytest.approx(
        float(tiny.model.get_input_embeddings().weight.detach().std()), rel=0.05
    )


def test_what_looks_like_a_token_has_the_scale_that_the_model_reads(tiny: LanguageModel) -> None:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    gemma = Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=500, hidden_size=64, intermediate_size=16, **sizes))
    embed = gemma.get_input_embeddings()
    with torch.no_grad():
        read_VD = embed(torch.arange(500))
    assert parrot.read_scale(gemma) == pytest.approx(8.0), "the square root of the width"
    assert parrot.read_scale(tiny.model) == 1.0
    assert float(parrot.new_parrot(gemma, 200, "noise", 1).detach().std()) == pytest.approx(float(read_VD.std()), 0.05)
    assert parrot.typical_norm(gemma) == pytest.approx(float(read_VD.norm(dim=1).median()))
    for token_D in parrot.new_parrot(gemma, 4, "tokens", 1).detach():
        assert (read_VD - token_D).norm(dim=1).min() < 1e-4
    with parrot.attached(gemma, parrot.new_parrot(gemma, 2, "zeros", 0)):
        assert parrot.read_scale(gemma) == pytest.approx(8.0)


def test_a_parrot_can_be_made_while_another_is_attached(tiny: LanguageModel, noise: torch.nn.Parameter) -> None:
    with parrot.attached(tiny.model, noise):
        assert parrot.insert([ROW], parrot.vocabulary(tiny.model), LENGTH, 0)[0].prompt[2:5] == PARROT
        assert parrot.new_parrot(tiny.model, 2, "zeros", seed=0).shape == (2, 64)
