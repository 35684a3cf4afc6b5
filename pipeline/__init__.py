"""VGG on CIFAR-10: the machine learning behind the plugin. Does not import Luigi.

    config -> dataset -> model -> training -> evaluation -> export -> report

Every module works from a Python prompt. Each stage reads its inputs' manifests and writes its own.
"""

__version__ = "0.1.0"
