"""all-MiniLM-L6-v2 as an ONNX graph, written from its safetensors with the operators that PyTorch's exporter uses.

onnxruntime recognises them and fuses them (attention, GELU, layer norm) as it does for exported models.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

WIDTH, LAYERS, HEADS = 384, 6, 12


class Graph:
    def __init__(self, weights):
        self.weights, self.nodes, self.constants, self.count = weights, [], {}, 0

    def op(self, kind, *inputs, **attributes):
        self.count += 1
        name = f"{kind}_{self.count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name, value):
        self.constants.setdefault(name, numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, name, transpose=False):
        value = self.weights[name]
        return self.constant(name, np.ascontiguousarray(value.T) if transpose else value)

    def linear(self, x, name):
        return self.op("Add", self.weight(f"{name}.bias"), self.op("MatMul", x, self.weight(f"{name}.weight", True)))

    def norm(self, x, name):
        parts = (self.weight(f"{name}.LayerNorm.{part}") for part in ("weight", "bias"))
        return self.op("LayerNormalization", x, *parts, axis=-1, epsilon=1e-12)

    def heads(self, x, order):
        shape = self.constant("heads", np.array([0, 0, HEADS, WIDTH // HEADS], np.int64))
        return self.op("Transpose", self.op("Reshape", x, shape), perm=order)

    def layer(self, x, mask, number):
        name = f"encoder.layer.{number}."
        q = self.heads(self.linear(x, name + "attention.self.query"), [0, 2, 1, 3])
        k = self.heads(self.linear(x, name + "attention.self.key"), [0, 2, 3, 1])
        v = self.heads(self.linear(x, name + "attention.self.value"), [0, 2, 1, 3])
        root = self.constant("root", np.float32((WIDTH // HEADS) ** 0.5))
        scores = self.op("Add", self.op("Div", self.op("MatMul", q, k), root), mask)
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)
        flat = self.constant("flat", np.array([0, 0, WIDTH], np.int64))
        mixed = self.op("Reshape", self.op("Transpose", mixed, perm=[0, 2, 1, 3]), flat)
        x = self.norm(self.op("Add", self.linear(mixed, name + "attention.output.dense"), x), name + "attention.output")
        h = self.linear(x, name + "intermediate.dense")
        scalar = lambda label, value: self.constant(label, np.float32(value))
        e = self.op("Add", self.op("Erf", self.op("Div", h, scalar("sqrt2", 2**0.5))), scalar("one", 1))
        h = self.op("Mul", self.op("Mul", h, e), scalar("half", 0.5))
        return self.norm(self.op("Add", self.linear(h, name + "output.dense"), x), name + "output")


def build(safetensors, path):
    """Writes the graph: input_ids, attention_mask → last_hidden_state."""
    graph = Graph(load_file(safetensors))
    words = graph.op("Gather", graph.weight("embeddings.word_embeddings.weight"), "input_ids")
    length = graph.op("Gather", graph.op("Shape", "input_ids"), graph.constant("second", np.int64(1)), axis=0)
    last = graph.op("Unsqueeze", length, graph.constant("axis", np.array([0], np.int64)))
    first = graph.constant("first", np.array([0], np.int64))
    places = graph.op("Slice", graph.weight("embeddings.position_embeddings.weight"), first, last, first)
    segment = graph.constant("segment", graph.weights["embeddings.token_type_embeddings.weight"][0])
    x = graph.norm(graph.op("Add", graph.op("Add", words, segment), places), "embeddings")
    mask = graph.op("Unsqueeze", "attention_mask", graph.constant("axes", np.array([1, 2], np.int64)))
    mask = graph.op("Cast", mask, to=TensorProto.FLOAT)
    mask = graph.op("Sub", graph.constant("one", np.float32(1)), mask)
    mask = graph.op("Mul", mask, graph.constant("never", np.float32(np.finfo(np.float32).min)))
    for number in range(LAYERS):
        x = graph.layer(x, mask, number)
    graph.nodes.append(helper.make_node("Identity", [x], ["last_hidden_state"]))
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "length"]) for n in ("input_ids", "attention_mask")]
    output = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "length", WIDTH])
    made = helper.make_graph(graph.nodes, "minilm", inputs, [output], list(graph.constants.values()))
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
