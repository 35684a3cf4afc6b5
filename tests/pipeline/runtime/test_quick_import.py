"""MXNet imported lazily: its operators work as if they had been there from the start."""

from __future__ import annotations

import sys

from luigi_runs import CHECKOUT, clean_environment, run

PROGRAM = """
import sys
from pipeline import runtime
mx = runtime.mxnet()
print(*sorted({"onnx", "requests.sessions", "numpy.testing"} & set(sys.modules)))

register, made = sys.modules["mxnet.ndarray.register"], []
write = register._generate_ndarray_function_code
register._generate_ndarray_function_code = lambda *about: made.append(about[1]) or write(*about)
for _ in range(2):
    assert mx.nd.relu(mx.nd.array([-1, 2])).asnumpy().tolist() == [0, 2]
print(made.count("relu"))

symbol = mx.sym.Convolution(mx.sym.var("x"), kernel=(3, 3), num_filter=4, name="first")
print(symbol.list_arguments())
print(mx.nd.contrib.arange_like(mx.nd.zeros((3,))).asnumpy(), mx.np.sum(mx.np.ones((2, 2))))
print(mx.test_utils.same(1, 1), mx.gluon.utils.requests.__name__, mx.gluon.utils.requests.get.__name__)
"""


def test_operators_are_made_when_first_called_and_unused_modules_loaded_when_first_used(tmp_path):
    result = run([sys.executable, "-c", PROGRAM], tmp_path, clean_environment(PYTHONPATH=str(CHECKOUT)))
    assert result.rc == 0, result.text
    assert result.output.splitlines() == [
        "",
        "1",
        "['x', 'first_weight', 'first_bias']",
        "[0. 1. 2.] 4.0",
        "True requests get",
    ]
