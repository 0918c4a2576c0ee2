"""What a manifest says about the trainings of a stage."""

from benchmark.execution import provenance

PLANT = {"steps": 15, "tokens": 300, "compute_type": "bf16"}
OVERWRITE = {"steps": 15, "tokens": 400, "compute_type": "fp32"}
CALIBRATION = {"sequences": 128, "tokens": 9000}  # of `wanda`, which only reads them


def test_the_tokens_of_a_stage_are_those_of_its_trainings() -> None:
    facts = {"plant": PLANT, "overwrite": OVERWRITE, "calibration": CALIBRATION, "alarm": True}
    assert provenance.tokens(facts) == 700
    assert provenance.compute_type(facts) == "bf16+fp32"


def test_a_stage_without_a_training_trains_on_no_token() -> None:
    assert provenance.tokens({"calibration": CALIBRATION}) == 0
    assert provenance.compute_type({"calibration": CALIBRATION}) == "fp32"
