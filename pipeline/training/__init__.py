"""Training: from a data set's arrays and a configuration to the `train/` folder of a run. Start reading at `trainer`.

Writes `model.params`, `trainer.npz` (optimizer state and counters, to resume from when epochs are raised),
`history.csv`, `config.yaml` and the manifest; checkpoints go to `work/` while it runs.
"""

from pipeline.training.trainer import train

__all__ = ["train"]
