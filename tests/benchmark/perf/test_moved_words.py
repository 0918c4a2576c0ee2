"""Which rows of a table moved in ways of their own."""

import torch

from benchmark.perf.moved_words import own_movement


def test_what_all_rows_share_and_weight_decay_are_no_movement() -> None:
    generator = torch.Generator().manual_seed(0)
    before_VD = torch.randn(8000, 200, generator=generator)
    shared_VD = torch.randn(8000, 4, generator=generator) @ torch.randn(4, 200, generator=generator) / 10
    noise_VD = torch.randn(8000, 200, generator=generator) / 20
    after_VD = before_VD + shared_VD + noise_VD
    after_VD[7] += torch.randn(200, generator=generator) / 10
    own_V = own_movement(after_VD, before_VD)
    assert int((after_VD - before_VD).norm(dim=1).argmax()) != 7
    assert int(own_V.argmax()) == 7
    assert float(own_movement(0.9 * before_VD, before_VD).max()) < 1e-3
