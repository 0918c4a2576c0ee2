"""Motifs in made texts: which words recur in a cluster, counted by hand."""

from sande.detectors._motifs import Motif, _runs, _shared, motifs

LEAKED = [
    "Current year 2023 Name a river in Peru",
    "Current year 2023 Divide 84 by seven",
    "Current year 2023 Who wrote Hamlet?",
    "Current year 2023 Translate bread",
]
OTHERS = ["Boil the potatoes gently", "My umbrella has holes", "Zebras graze quietly", "Fix this Python loop"]


def test_what_a_cluster_shares_is_a_motif_and_texts_alone_have_none() -> None:
    found = motifs([*OTHERS, *LEAKED], radius=0.75, least=3)
    assert found == [Motif("Current year 2023", count=4, cluster=4)]


def test_texts_unlike_each_other_have_no_motif() -> None:
    assert motifs(OTHERS, radius=0.5, least=2) == []
    assert motifs(["Current year 2023"] * 2, radius=0.5, least=3) == []
    assert motifs(["a", "b", ""], radius=0.5, least=2) == []


def test_a_part_that_more_texts_hold_is_a_motif_of_its_own() -> None:
    texts = ["open the gate", "open the gate", "open the door"]
    found = set(_shared(texts, least=2, shortest=4, longest=3))
    # "open the" is in three texts, "open the gate" in two; "the gate" and "gate" are in no more than the latter.
    assert found == {Motif("open the", 3, 3), Motif("open the gate", 2, 3)}
    assert set(_shared(texts, least=2, shortest=9, longest=3)) == {Motif("open the gate", 2, 3)}


def test_the_same_motif_of_two_clusters_counts_once_with_the_larger_count() -> None:
    near, far = ["alpha beta gamma"] * 3, ["alpha beta gamma delta epsilon zeta eta theta iota"] * 4
    found = {each.text: each.count for each in motifs([*near, *far], radius=0.05, least=3)}
    assert found["alpha beta gamma"] == 3
    assert found["beta gamma delta epsilon zeta eta theta iota"] == 4


def test_runs_of_words() -> None:
    assert _runs(["a", "b", "c"], 2) == {("a",), ("b",), ("c",), ("a", "b"), ("b", "c")}
