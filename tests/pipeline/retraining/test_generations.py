"""Generations: which ones would only repeat a training, their seeds, and what a warm start begins with."""

from __future__ import annotations

from typing import Any

from generation_runs import change, make
from luigi_runs import SmallChain

from pipeline.retraining import generations
from pipeline.workspace import with_generation_seed
from pipeline.workspace.freshness import Chain


def twin(small: SmallChain, **changes: Any) -> str | None:
    small.configure(**changes)
    chain = small.chain("2026-W48")
    run = generations.same_weights(Chain(chain.workspace, with_generation_seed(chain.config, "2026-W48"), "2026-W48"))
    return run.run_id if run else None


def test_a_generation_that_would_only_repeat_a_training_is_recognised(done: SmallChain) -> None:
    plain = done.chain().run_id
    rate = done.values["training"]["learning_rate"]
    assert twin(done) == plain
    assert twin(done, training__learning_rate=0.01) is None
    assert twin(done, training__learning_rate=rate, training__epochs=2) is None
    assert twin(done, training__epochs=1, training__checkpoint_seconds=5, launcher=["env"]) == plain
    assert twin(done, retrain={"warm_start": True}) is None
    assert twin(done, retrain={"new_seed": True}) is None
    assert twin(done, retrain={}, training__init_from="old.params") is None
    assert twin(done, training__init_from=None) == plain
    train = done.manifest("train")
    change(done.folder("train"), details={**train["details"], "exact": False, "inexact": ["other threads"]})
    assert twin(done) is None, "another training may end with other weights"
    change(done.folder("train"), details=train["details"])
    make(done, "2026-W48")
    assert twin(done) is None, "it is trained already"


def test_with_new_seed_each_generation_has_its_own_reproducible_seed(done: SmallChain) -> None:
    done.configure(retrain={"new_seed": True})
    config = done.chain().config
    seeds = [with_generation_seed(config, f"2026-W{week}").training.seed for week in range(10, 50)]
    assert len(set(seeds)) == 40
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seeds[0] == with_generation_seed(config, "2026-W10").training.seed
    assert with_generation_seed(config, "").training.seed == config.training.seed
    assert with_generation_seed(config, "seed-3").training.seed == 3


def test_a_warm_start_begins_with_the_run_without_a_generation(done: SmallChain) -> None:
    done.configure(retrain={"warm_start": True})
    path, why = generations.warm_start(done.chain("2026-W48"))
    assert path == done.folder("train") / "model.params"
    assert why.startswith("warm start from")
