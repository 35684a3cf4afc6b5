"""The network in training: a step over one or several devices, its optimizer, and its whole state as arrays.

Does not use Gluon's `Trainer`, which pickles its state, keys momentum by position, and overwrites the learning rate
when loaded (apache/mxnet issues 10910, 15918, 17056); the optimizers and the kvstore are MXNet's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pipeline import model
from pipeline.config import Architecture, Training
from pipeline.dataset import loader
from pipeline.dataset.normalisation import Normalisation
from pipeline.runtime import Devices, mxnet
from pipeline.training import muon
from pipeline.training.gradient_sync import ProcessGroup, Worker
from pipeline.training.loss import LossScaler, cross_entropy, loss_block

#: Weights per fused update operator. MXNet's kernel takes at most 60.
_AGGREGATE = 32


class Network:
    """A VGG with its optimizer on one or several devices. `set_state` restores what `state` returns.

    Weights stay in float32 whatever the precision of the layers.
    """

    def __init__(
        self,
        architecture: Architecture,
        training: Training,
        devices: Devices,
        precision: str,
        group: ProcessGroup | None = None,
    ) -> None:
        self.mx = mx = mxnet()
        if precision != "float32":
            from mxnet.contrib import amp

            amp.init(precision)  # before building the network, because it replaces the operators that layers call
        self.training, self.devices, self.precision = training, devices, precision
        self.net = model.build(architecture, precision)
        self.has_dropout = architecture.dropout > 0 and bool(architecture.dense)
        self.loss = loss_block(mx, training.label_smoothing, architecture.outputs)
        for block in (self.net, self.loss):
            block.hybridize(static_alloc=True, static_shape=True)
        self.parameters = model.parameters(self.net)
        self.learned = {name: p for name, p in self.parameters.items() if p.grad_req != "null"}
        self.optimizer = _optimizer(mx, training, {name: p.shape for name, p in self.learned.items()})
        self.momentum_buffers: list[list[Any]] = []
        self.group = group or ProcessGroup(mx, devices, Worker())
        self.scaler = LossScaler() if precision == "float16" else None
        self._sums: list[list[Any]] = []
        self._architecture = architecture
        self._inference_net: Any = None
        self._last_loss: Any = None

    def initialize(self, seed: int) -> None:
        """Initialise the weights as configured. The result depends on the seed but not on the number of devices."""
        mx = self.mx
        mx.random.seed(seed)
        np.random.seed(seed)
        xavier = mx.init.Xavier()  # uniform, averaged fans, magnitude 3: Glorot and Bengio 2010
        he = mx.init.Xavier("gaussian", "in", 2)  # He et al. 2015, arXiv:1502.01852
        initializer = xavier if self.training.initializer == "xavier" else he
        self.net.initialize(initializer, ctx=self.devices.contexts, force_reinit=True)
        if self.training.zero_output:
            self.net[-1].initialize(mx.init.Zero(), ctx=self.devices.contexts, force_reinit=True)
        self._reset_optimizer()

    def replace_first_filters(self, filters: np.ndarray) -> None:
        """Overwrite the first layer's first n filters with (n, 3, side, side) float32 `filters`."""
        for weight in self.parameters["0.0.weight"].list_data():
            weight[: len(filters)] = self.mx.nd.array(filters, ctx=weight.context)

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Parameters and optimizer state as float32 arrays by structural name. Waits for pending computations.

        Learned parameters and momentum buffers are the same on every device. Running statistics differ, and those of
        further devices have a suffix (`0.1.running_mean@1` for the second device).
        """
        self._wait()
        parameters: dict[str, np.ndarray] = {}
        for name, parameter in self.parameters.items():
            copies = parameter.list_data()
            parameters[name] = copies[0].asnumpy()
            if name not in self.learned:
                for number, copy in enumerate(copies[1:], start=1):
                    parameters[f"{name}@{number}"] = copy.asnumpy()
        optimizer_state = {
            name: momentum.asnumpy()
            for name, momentum in zip(self.learned, self.momentum_buffers[0], strict=True)
            if momentum is not None
        }
        if self.scaler is not None:
            optimizer_state["loss scale"] = np.array([self.scaler.scale, self.scaler.good_steps], np.float32)
        return parameters, optimizer_state

    def set_state(self, parameters: Mapping[str, np.ndarray], optimizer_state: Mapping[str, np.ndarray]) -> None:
        """Restore what `state` returned, on any number of devices. Missing momentum becomes zero."""
        mx = self.mx
        for name, parameter in self.parameters.items():
            for number, copy in enumerate(parameter.list_data()):
                copy[:] = mx.nd.array(parameters.get(f"{name}@{number}", parameters[name]), ctx=copy.context)
        self._reset_optimizer()
        for copies in self.momentum_buffers:
            for name, momentum in zip(self.learned, copies, strict=True):
                if momentum is not None and name in optimizer_state:
                    momentum[:] = mx.nd.array(optimizer_state[name], ctx=momentum.context)
        if self.scaler is not None and "loss scale" in optimizer_state:
            self.scaler.scale, self.scaler.good_steps = map(float, optimizer_state["loss scale"])
        mx.nd.waitall()

    def mismatch(self, parameters: Mapping[str, np.ndarray], optimizer_state: Mapping[str, np.ndarray]) -> str:
        """Why `state` of this network cannot have returned these arrays; empty if it can."""
        shapes = {name: parameter.shape for name, parameter in self.parameters.items()}
        if missing := [name for name in shapes if name not in parameters]:
            return f"{missing[0]} is missing"
        given = [(name, name.partition("@")[0], value.shape) for name, value in parameters.items()]
        given += [(f"the momentum of {name}", name, value.shape) for name, value in optimizer_state.items()]
        shapes["loss scale"] = (2,)
        for title, name, shape in given:
            if shape != shapes.get(name):
                return f"{title} has the shape {shape}, expected {shapes.get(name, 'no such array')}"
        return ""

    def _reset_optimizer(self) -> None:
        self.momentum_buffers = [
            [self.optimizer.create_state(i, p.list_data()[d]) for i, p in enumerate(self.learned.values())]
            for d in range(len(self.devices.contexts))
        ]
        self.group.prepare([parameter.list_data()[0] for parameter in self.learned.values()])

    def start_epoch(self, sums: list[list[float]]) -> None:
        """Set the sums that `step` adds to: zero (an empty list), or those of an interrupted epoch."""
        # With several workers, each has the sums over all of them instead of one per device.
        devices = 1 if self.group.worker.world_size > 1 else len(self.devices.contexts)
        if len(sums) != devices:  # a new epoch, or resumed on another number of devices
            total = [sum(values) for values in zip(*sums, strict=True)] or [0.0, 0.0]
            sums = [total] + [[0.0, 0.0]] * (devices - 1)
        self._sums = [
            [self.mx.nd.full((1,), value, ctx=context) for value in values]
            for values, context in zip(sums, self.devices.contexts, strict=False)
        ]

    def step(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        learning_rate: float,
        step: int,
        count: int | None = None,
    ) -> None:
        """Run one update from (n, 3, 32, 32) float32 images and (n,) labels, without waiting for the result.

        With several workers, each passes its part, which may be empty, of a batch of `count` images. `step` seeds this
        step's random numbers, so that resuming does not change dropout.
        """
        mx, worker = self.mx, self.group.worker
        if self.has_dropout:
            mx.random.seed(_step_seed(self.training.seed, step * worker.world_size + worker.rank))
        contexts = self.devices.contexts[: len(labels)]  # a batch smaller than the number of devices
        inputs, targets = (
            mx.gluon.utils.split_and_load(values, contexts, even_split=False) if contexts else []
            for values in (images, labels)
        )
        losses, tallies = [], []
        with mx.autograd.record():
            for x, y in zip(inputs, targets, strict=True):
                loss, correct = self.loss(self.net(x), y)
                losses.append(loss * self.scaler.scale if self.scaler else loss)
                tallies.append((loss.detach(), correct.detach()))
        if losses:
            mx.autograd.backward(losses)
        self._accumulate(tallies)
        self._update(count or len(labels), learning_rate, len(contexts))
        if tallies:
            previous, self._last_loss = self._last_loss, (tallies[0][0], len(inputs[0]))
            if previous:  # waiting for the previous step bounds the queue, and so the memory, without draining it
                previous[0].wait_to_read()

    def _accumulate(self, tallies: list[tuple[Any, Any]]) -> None:
        if self.group.worker.world_size > 1:
            both = self.group.all_reduce_tallies(tallies)
            tallies = [(both[0:1], both[1:2])]
        for totals, values in zip(self._sums, tallies, strict=False):
            for total, value in zip(totals, values, strict=True):
                self.mx.nd.elemwise_add(total, value, out=total)

    def _update(self, count: int, learning_rate: float, parts: int) -> None:
        gradients = [parameter.list_grad() for parameter in self.learned.values()]
        self.group.all_reduce_gradients(gradients, parts)
        scale = self.scaler.scale if self.scaler else 1.0
        if self.scaler and not self.scaler.accept([copies[0] for copies in gradients], self.mx):
            return  # the gradients overflowed: skip the update, the scale is lower now
        self.optimizer.rescale_grad = 1.0 / (count * scale)
        self.optimizer.set_learning_rate(learning_rate)
        values = [parameter.list_data() for parameter in self.learned.values()]
        indices = list(range(len(values)))
        for device, states in enumerate(self.momentum_buffers):
            if len(self.momentum_buffers) > 1:
                self.optimizer._set_current_context(device)
            weights = [copies[device] for copies in values]
            grads = [copies[device] for copies in gradients]
            if self.training.optimizer == "sgd":
                for start in range(0, len(values), _AGGREGATE):
                    part = slice(start, start + _AGGREGATE)
                    self.optimizer.update(indices[part], weights[part], grads[part], states[part])
            else:  # MXNet's Nesterov and Muon have no fused update
                for index in indices:
                    self.optimizer.update(index, weights[index], grads[index], states[index])

    def sums(self) -> list[list[float]]:
        """For each device, loss sum and number of correct predictions since `start_epoch`. Waits for them."""
        return [[float(value.asscalar()) for value in values] for values in self._sums]

    def last_loss(self) -> float | None:
        """Mean loss of the last step on the first device, for the progress line; None before the first step."""
        if self._last_loss is None:
            return None
        loss, count = self._last_loss
        return float(loss.asscalar()) / count

    def evaluate(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        norm: Normalisation,
        batch_size: int,
        between: Callable[[], None] = lambda: None,
    ) -> tuple[float | None, float | None]:
        """Mean loss and accuracy on (n, 3, 32, 32) uint8 images, on the first device; (None, None) without images.

        Does not use augmentation or smoothing. Calls `between`, which may raise, after each batch.
        """
        if not len(labels):
            return None, None
        net, context, logits = self._inference_copy(), self.devices.contexts[0], []
        for values, count in loader.padded_batches(images, min(batch_size, len(labels)), norm):
            logits.append(net(self.mx.nd.array(values, ctx=context)).astype("float32").asnumpy()[:count])
            between()
        loss, correct = cross_entropy(np.concatenate(logits), labels)
        return float(loss.mean()), float(correct.mean())

    def _inference_copy(self) -> Any:
        """A second network with the current weights, for prediction.

        Never predict with the weights in training: prediction makes oneDNN rearrange them in place, some time later.
        MXNet's Nesterov update then no longer works in place, its momentum decays the old weight instead of the new
        one, and the result depends on timing.
        """
        if self._inference_net is None:
            self._inference_net = model.build(self._architecture, self.precision)
            self._inference_net.initialize(ctx=self.devices.contexts[:1])
            self._inference_net.hybridize(static_alloc=True, static_shape=True)
        self._wait()
        for name, copy in model.parameters(self._inference_net).items():
            self.parameters[name].list_data()[0].copyto(copy.list_data()[0])
        return self._inference_net

    def _wait(self) -> None:
        """Wait for all pending computations before reading the weights.

        MXNet orders a read of batch norm's running statistics after the forward pass, but not after the backward pass,
        which updates them. Without waiting, they would be those of an earlier step.
        """
        self.mx.nd.waitall()


def _optimizer(mx: Any, training: Training, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    settings = {"learning_rate": training.learning_rate, "momentum": training.momentum, "wd": training.weight_decay}
    if training.optimizer == "muon":
        optimizer = muon.optimizer(mx, [muon.is_hidden(*item) for item in shapes.items()], **settings)
    else:
        optimizer = {"sgd": mx.optimizer.SGD, "nag": mx.optimizer.NAG}[training.optimizer](**settings)
    endings = {"bias": (".bias",), "norm": (".gamma", ".beta")}
    excluded = tuple(ending for kind in training.weight_decay_exclude for ending in endings[kind])
    optimizer.set_wd_mult({index: 0.0 for index, name in enumerate(shapes) if name.endswith(excluded)})
    layers = [name.rpartition(".")[0] for name in shapes]
    factors = {index: training.lr_mult.norm for index, name in enumerate(shapes) if name.endswith(endings["norm"])}
    factors |= {index: training.lr_mult.output for index, layer in enumerate(layers) if layer == layers[-1]}
    optimizer.set_lr_mult(factors)
    return optimizer


def _step_seed(seed: int, step: int) -> int:
    # MXNet takes 31 bits. Knuth's multiplicative hash spreads neighbouring steps and seeds.
    return ((seed + 1) * 2654435761 + step * 40503) % (2**31 - 1)
