"""The model: the VGG network (`vgg`), its weights on disk (`weights`), and its initial filters (`whitening`)."""

from pipeline.model.vgg import (
    CHANNELS,
    Layer,
    build,
    count_multiply_adds,
    count_parameters,
    layer_table,
    parameters,
)

__all__ = ["CHANNELS", "Layer", "build", "count_multiply_adds", "count_parameters", "layer_table", "parameters"]
