"""Training: the data set's arrays and a configuration in, `train/` of a run out.

Leaves `model.params`, `trainer.npz` (optimizer state and counters, to resume from when epochs are raised),
`history.csv`, `config.yaml` and the manifest; checkpoints under `work/` while it runs. `trainer` is the main loop.
"""

from pipeline.training.trainer import train

__all__ = ["train"]
