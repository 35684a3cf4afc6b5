"""A workspace: its paths and names, manifests, the event log, and what would run."""

from pipeline.files import MANIFEST
from pipeline.workspace.paths import (
    RUN_FOLDERS,
    RUN_STAGES,
    Run,
    Workspace,
    dataset_id,
    generation_seed,
    run_id,
    seed_generation,
    source_key,
    with_generation_seed,
    workspace_of,
)

__all__ = [
    "MANIFEST",
    "RUN_FOLDERS",
    "RUN_STAGES",
    "Run",
    "Workspace",
    "dataset_id",
    "generation_seed",
    "run_id",
    "seed_generation",
    "source_key",
    "with_generation_seed",
    "workspace_of",
]
