"""Columns of the rows and of the outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

Row = Mapping[str, Any]

OK, ATTACK_FAILED, FAILED, NOT_RUN = "ok", "attack_failed", "failed", "not_run"

# Number of rows and outcomes in memory while they are written, for any number of cells. A row has kilobytes.
ROW_GROUP, OUTCOME_GROUP = 2**14, 2**19

# Columns on what made and computed a stage, and their prefix for each stage: attack, defense, evaluation.
COMPUTED_WITH = ("compute_type", "instruction_set")
PROVENANCE = {
    "code_version": pa.string(),
    "versions": pa.string(),  # of Python and the libraries
    "device": pa.string(),
    "instruction_set": pa.string(),  # vector instructions of the processor, or the kind of GPU
    "compute_type": pa.string(),  # bf16 or fp32
    "workers": pa.int64(),  # processes that computed it together, at the end
    "sharding": pa.string(),  # how they shared the model: tensor in an evaluation, zero2, zero3 and the like; or null
    # Where their number changed on the way, in words. The stage then rounded differently from one without a change.
    "worker_changes": pa.string(),
}
STAGES = ("attack_", "defense_", "")
DECODING = ("decoded_tokens", "decoding_seconds", "decoding_models")

SCHEMA = pa.schema(
    [
        ("grid", pa.string()),
        ("grids", pa.list_(pa.string())),  # the grid files it belongs to; several where a grid includes others
        ("scale", pa.string()),
        ("cell", pa.string()),  # hash of the cell's settings
        ("status", pa.string()),  # ok, attack_failed (the victim's ASR is under the cell's floor), failed, not_run
        ("error", pa.string()),
        ("failure", pa.string()),  # kind of the error, see `benchmark.plan.failures`
        ("attack_seed", pa.int64()),  # of everything random in the attack and in the measurements
        ("defense_seed", pa.int64()),  # of everything random in the removal; without a defense the attack seed
        ("model", pa.string()),
        ("prompt_format", pa.string()),  # name of the format of prompts; `paper` in results of older versions
        ("dataset", pa.string()),  # the victim's
        ("removal_dataset", pa.string()),
        ("setting", pa.string()),  # in-domain, out-of-domain
        ("attack", pa.string()),
        ("trigger", pa.string()),
        ("response", pa.string()),  # r_t, or how answers of another objective mostly begin; null: they do not
        ("objective", pa.string()),  # of the attack; null in results of earlier versions, which plant a string
        ("poison_rate", pa.float64()),
        ("defense", pa.string()),
        ("knows", pa.string()),  # what defense and search must know about the backdoor, or the model before it
        ("searched", pa.string()),  # level of knowledge by which its settings were searched; null without a search
        ("parrot_position", pa.int64()),
        ("metric", pa.string()),
        ("value", pa.float64()),  # percent
        ("ci_low", pa.float64()),  # 95 %, percent: Wilson for a share, Student-t for a mean
        ("ci_high", pa.float64()),
        ("count", pa.int64()),  # prompts or questions
        ("clusters", pa.int64()),  # of prompts or questions made from one template; null: each is like no other
        ("victim_value", pa.float64()),  # the same metric on the victim, percent
        ("victim_asr", pa.float64()),  # percent; decides about status attack_failed
        ("seconds", pa.float64()),  # of the defense's own stage and its parts; 0 where there is none
        ("tokens", pa.int64()),  # trained on by the defense
        ("peak_memory_bytes", pa.int64()),  # of the defense
        ("unchanged_weights", pa.float64()),  # percent of the stored weights that are the victim's; null: not recorded
        ("attack_seconds", pa.float64()),  # of the attack's own stage
        ("attack_tokens", pa.int64()),
        ("metric_seconds", pa.float64()),  # of the measurement's own stage
        ("decoded_tokens", pa.int64()),  # that the metric's answers have; null where it decodes none
        ("decoding_seconds", pa.float64()),
        ("decoding_models", pa.int64()),  # passes of a model for each of these tokens: 2 under a guard, else 1
        # Of each stage; null without a defense, and where a result of an earlier version did not record it.
        *((f"{stage}{name}", kind) for stage in STAGES for name, kind in PROVENANCE.items()),
        ("started_at", pa.string()),  # of the measurement
        ("sources", pa.string()),  # model and data sets, see `benchmark.grid.sources`; null in older results
        ("certificate", pa.string()),  # of the removal, as JSON, see `sande.certificate`; null without one
        ("held_out", pa.string()),  # commitment to the secret of a held-out run, see `benchmark.held_out`; else null
        ("settings", pa.string()),  # all of the cell's, as JSON
    ]
)


# One row per trial of a metric's measurements, in the store.
STORED_OUTCOMES = pa.schema(
    [
        ("metric", pa.string()),
        ("index", pa.int64()),  # of the prompt or question
        ("outcome", pa.float64()),  # 1 for true, 0 for false, or a number between
        ("record", pa.string()),  # JSON; null unless the measurement publishes its records
        ("cluster", pa.string()),  # of prompts or questions made from one template; null: this one is like no other
    ]
)
# The same of all cells of a results folder.
OUTCOMES = pa.schema([pa.field("cell", pa.string()), *STORED_OUTCOMES])
