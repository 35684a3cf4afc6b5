"""The network: names, shapes and parameters match the configuration and the nested Sequentials of the original."""

from __future__ import annotations

import json
import subprocess
import sys

import msgspec
import pytest
from luigi_runs import VGG8

from pipeline import model
from pipeline.config import load
from pipeline.runtime import mxnet

mx = mxnet()

NETWORKS = {
    "the original, narrow": {"conv_arch": [[1, 4], [1, 8], [2, 8], [2, 16], [2, 16]], "dense": [32, 16]},
    "batch norm, no dense layers": {"conv_arch": [[1, 4], [2, 8]], "batch_norm": True, "dense": []},
    "batch norm and dense layers": {"conv_arch": [[2, 4], [1, 8], [1, 8]], "batch_norm": True, "dense": [12]},
    "one block": {"conv_arch": [[3, 5]], "dense": [7]},
    "down to one pixel": {"conv_arch": [[1, 2], [1, 2], [1, 2], [1, 2], [1, 2]], "dense": []},
    "the shape of vgg8.yaml": {key: value for key, value in VGG8["architecture"].items() if key != "name"},
    "GELU without batch norm, pool first": {
        "conv_arch": [[1, 4], [3, 8]],
        "activation": "gelu",
        "pool": "first",
        "dense": [6, 5],
    },
    "a stem before five pixels": {"conv_arch": [[1, 4]] * 4, "stem": 5, "dense": [4], "dropout": 0.0},
}


@pytest.fixture(params=list(NETWORKS))
def architecture(request, small_architecture):
    return small_architecture(**NETWORKS[request.param])


def built(architecture):
    net = model.build(architecture)
    net.initialize()
    return net


def test_any_architecture_maps_images_to_one_logit_per_class(architecture):
    assert built(architecture)(mx.nd.zeros((3, 3, 32, 32))).shape == (3, 10)


def test_the_bfloat16_network_computes_the_same_without_amp(architecture):
    architecture = msgspec.structs.replace(architecture, dropout=0.0)
    mx.random.seed(1)  # other seeds can zero all ReLUs of the narrow networks, and so the logits
    plain, other = model.build(architecture), model.build(architecture, "bfloat16")
    for net in (plain, other):
        net.initialize(mx.init.Xavier())
    for name, parameter in model.parameters(other).items():
        parameter.set_data(model.parameters(plain)[name].data())
    images = mx.nd.random.normal(shape=(4, 3, 32, 32))
    with mx.autograd.record():
        logits = [net(images) for net in (plain, other)]
    mx.autograd.backward(logits, [logits[0].copy()] * 2)
    assert close(*logits)
    learned = [[p for p in model.parameters(net).values() if p.grad_req != "null"] for net in (plain, other)]
    assert all(close(one.grad(), two.grad()) for one, two in zip(*learned, strict=True))


def close(one, other):
    return abs(one - other).max().asscalar() <= 1e-4 * abs(one).max().asscalar()


def test_parameter_count_and_layer_table_match_the_built_network(architecture):
    net = built(architecture)
    learned = {name: p for name, p in model.parameters(net).items() if p.grad_req != "null"}
    assert model.count_parameters(architecture) == sum(p.data().size for p in learned.values())
    table = {layer.name: layer.parameters for layer in model.layer_table(architecture) if layer.parameters}
    found = {}
    for name, parameter in learned.items():
        layer = name.rpartition(".")[0]
        found[layer] = found.get(layer, 0) + parameter.data().size
    assert table == found


def test_the_layer_table_has_the_shapes_of_the_built_network(architecture):
    net, values = built(architecture), mx.nd.zeros((1, 3, 32, 32))
    shapes = {}
    for index, child in enumerate(net):
        if isinstance(child, mx.gluon.nn.HybridSequential):
            for number, layer in enumerate(child):
                values = layer(values)
                shapes[f"{index}.{number}"] = values.shape[1:]
        else:
            values = child(values)
            shapes[str(index)] = values.shape[1:]
    table = {layer.name: layer.output for layer in model.layer_table(architecture)}
    assert table == {name: shapes[name] for name in table}
    assert model.layer_table(architecture)[-1].kind == "output"


def test_the_published_networks_have_their_published_sizes():
    # Without its dense layers VGG-11 has 9.2 million weights (Simonyan and Zisserman 2014, table 2, minus the head).
    full = load("config/vgg11.yaml").architecture
    convolutions = [layer for layer in model.layer_table(full) if layer.kind == "conv 3x3"]
    assert [layer.output[0] for layer in convolutions] == [64, 128, 256, 256, 512, 512, 512, 512]
    assert sum(layer.parameters for layer in convolutions) == 9_220_480
    assert model.count_parameters(full) == 9_220_480 + 512 * 4096 + 4096 + 4096 * 4096 + 4096 + 40_960 + 10
    for name, count in (("vgg13-bn", 10), ("vgg16-bn", 13), ("vgg19-bn", 16)):
        table = model.layer_table(load(f"config/{name}.yaml").architecture)
        assert sum(layer.kind == "conv 3x3" for layer in table) == count


def test_multiply_adds_match_a_calculation_by_hand(small_architecture):
    architecture = small_architecture(conv_arch=[[1, 4], [1, 8]], batch_norm=False, dense=[16])
    by_hand = 3 * 4 * 9 * 32 * 32 + 4 * 8 * 9 * 16 * 16 + 8 * 8 * 8 * 16 + 16 * 10
    assert model.count_multiply_adds(architecture) == by_hand


def test_names_do_not_depend_on_networks_built_before(architecture):
    first, second = built(architecture), built(architecture)
    assert list(first.collect_params()) == list(second.collect_params())
    assert list(model.parameters(first)) == list(model.parameters(second))


def test_the_order_by_name_is_the_order_of_the_layers_for_all_widths(small_architecture):
    # MXNet sorts parameters by full name; ten or more layers of a kind must stay in order.
    architecture = small_architecture(conv_arch=[[12, 2]], batch_norm=False, dense=[2] * 12)
    names = list(model.parameters(built(architecture)))
    assert len(names) == len(set(names)) == 2 * (12 + 12 + 1)


@pytest.mark.parametrize(("batch_norm", "cast"), [(True, [False, True, True]), (False, [True, True, True])])
def test_in_bfloat16_the_first_convolution_before_a_batch_norm_stays_in_float32(batch_norm: bool, cast: list[bool]):
    # In a process of its own, because AMP replaces MXNet's operators for good.
    code = """
import json, sys
from pipeline import model, runtime
from pipeline.config import Architecture
mx = runtime.mxnet()
from mxnet.contrib import amp
amp.init("bfloat16")
keys = {"batch_norm": sys.argv[1] == "True", "dense": [], "classes": 10}
architecture = Architecture(name="tiny", conv_arch=[(1, 4), (2, 8)], **keys)
graph = model.build(architecture, "bfloat16")(mx.sym.var("images"))
nodes = json.loads(graph.tojson(remove_amp_cast=False))["nodes"]
print(json.dumps([nodes[node["inputs"][0][0]]["op"] == "amp_cast" for node in nodes if node["op"] == "Convolution"]))
"""
    done = subprocess.run([sys.executable, "-c", code, str(batch_norm)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == cast
