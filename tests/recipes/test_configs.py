"""Every config composes, builds its model, and refuses what is not in the schema."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException

from toolkit.config import Config, Schedule, load

CONF = Path(__file__).resolve().parents[2] / "conf"


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("group", sorted(path.name for path in CONF.iterdir() if path.is_dir()))
def test_every_choice_of_every_group_composes(group: str) -> None:
    assert choices(group), f"conf/{group} is empty"
    for choice in choices(group):
        needs = ["corpus.dir=somewhere"] if group == "corpus" and choice != "synthetic" else []
        assert isinstance(load(CONF, [f"{group}={choice}", *needs]), Config)


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_every_experiment_builds_its_model(experiment: str) -> None:
    import torch

    from toolkit.models.transducer import TransducerModel

    config = load(CONF, [f"experiment={experiment}"])
    with torch.device("meta"):
        model = TransducerModel(config.model, config.loss, config.tokens.vocab_size, config.features.num_mel_bins)
    assert sum(p.numel() for p in model.parameters()) > 1_000_000


@pytest.mark.parametrize(
    "override", ["trainer.num_epoch=3", "corpus.trian_minutes=3", "modle=tiny", "loss.ctc.weight=1"]
)
def test_an_unknown_key_is_named(override: str) -> None:
    with pytest.raises(ConfigCompositionException) as error:
        load(CONF, [override])
    assert override.split("=")[0].split(".")[-1] in str(error.value)


def test_an_added_unknown_key_is_named() -> None:
    with pytest.raises(AttributeError, match="bananas"):
        load(CONF, ["+bananas=3"])


@pytest.mark.parametrize(
    "override",
    [
        "trainer.num_epochs=0",
        "data.noise.snr_db=[20,10]",
        "tokens.kind=phones",
        "model.encoder.num_heads=5",
        "loss.rnnt_type=standard",
        "features.speed_factors=[0.9]",
        "loss.simple.warmup=3000",
        "loss.lm_only_scale=-0.25",
        "loss.am_only_scale=0.9",
    ],
)
def test_a_value_that_makes_no_sense_is_named(override: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        load(CONF, [override])


@pytest.mark.parametrize("rnnt_type", ["regular", "modified", "constrained"])
def test_lattice_scales_and_schedules_of_the_transducer_come_from_the_config(rnnt_type: str) -> None:
    """The papers' lm_scale training: simple loss first, with lm_only_scale 0.25; the pruned one comes in by and by."""
    loss = load(
        CONF,
        [
            f"loss.rnnt_type={rnnt_type}", "loss.lm_only_scale=0.25", "loss.am_only_scale=0.05",
            "loss.simple={initial:1.0,final:0.5,warmup:0.2}", "loss.pruned={initial:0.1,final:1.0,warmup:0.2}",
        ],
    ).loss  # fmt: skip
    assert (loss.rnnt_type, loss.lm_only_scale, loss.am_only_scale) == (rnnt_type, 0.25, 0.05)
    assert loss.simple == Schedule(initial=1.0, final=0.5, warmup=0.2)
    assert loss.pruned == Schedule(initial=0.1, final=1.0, warmup=0.2)


def test_ctc_loss_needs_the_head() -> None:
    with pytest.raises(ValueError, match="ctc_head"):
        load(CONF, ["model.ctc_head=false", "loss=transducer_ctc"])


def test_sections_are_immutable() -> None:
    config = load(CONF)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    assert dataclasses.replace(config, seed=1).seed == 1


def test_schedule_is_linear_then_flat() -> None:
    schedule = Schedule(initial=1.0, final=0.5, warmup=0.1)
    assert [schedule(p) for p in (0.0, 0.05, 0.1, 1.0)] == [1.0, 0.75, 0.5, 0.5]
    assert Schedule(initial=1.0, final=0.3)(0.0) == 0.3
