"""VGG on CIFAR-10: the machine-learning work of the plugin. Imports no Luigi.

    config -> dataset -> model -> training -> evaluation -> export -> report

Each module is usable from a Python prompt; each stage reads its inputs' manifests and writes its own.
"""

__version__ = "0.1.0"
