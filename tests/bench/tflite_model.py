"""A benchmark operator as a LiteRT model, written straight into its flatbuffer.

One operator with constant weights; images are channels last, as LiteRT has them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import tflite

Array = np.ndarray[Any, Any]
_VERSION = 3
_IDENTIFIER = b"TFL3"


class _Writer:
    """Tensors, buffers and operators of a model with one graph."""

    def __init__(self) -> None:
        self.b = flatbuffers.Builder(1 << 20)
        self.tensors: list[int] = []
        self.buffers = [self._buffer(None)]  # buffer 0 is empty by convention
        self.operators: list[int] = []
        self.codes: list[int] = []

    def _buffer(self, data: Array | None) -> int:
        if data is None:
            tflite.BufferStart(self.b)
            return int(tflite.BufferEnd(self.b))
        raw = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
        # Elements must lie at multiples of 16 bytes, which CreateNumpyVector does not see to.
        self.b.StartVector(1, raw.size, 16)
        self.b.head -= raw.size
        self.b.Bytes[self.b.head : self.b.head + raw.size] = raw.tobytes()
        vector = self.b.EndVector()
        tflite.BufferStart(self.b)
        tflite.BufferAddData(self.b, vector)
        return int(tflite.BufferEnd(self.b))

    def _ints(self, start: Callable[..., Any], values: list[int]) -> int:
        start(self.b, len(values))
        for value in reversed(values):
            self.b.PrependInt32(value)
        return int(self.b.EndVector())

    def _tables(self, start: Callable[..., Any], values: list[int]) -> int:
        start(self.b, len(values))
        for value in reversed(values):
            self.b.PrependUOffsetTRelative(value)
        return int(self.b.EndVector())

    def tensor(self, name: str, shape: tuple[int, ...], data: Array | None = None) -> int:
        """A tensor's number; f32, or int32 for integer data."""
        number = 0
        if data is not None:
            number = len(self.buffers)
            self.buffers.append(self._buffer(data))
        text = self.b.CreateString(name)
        dims = self._ints(tflite.TensorStartShapeVector, list(shape))
        kind = tflite.TensorType.FLOAT32
        if data is not None and data.dtype == np.int32:
            kind = tflite.TensorType.INT32
        tflite.TensorStart(self.b)
        tflite.TensorAddShape(self.b, dims)
        tflite.TensorAddType(self.b, kind)
        tflite.TensorAddBuffer(self.b, number)
        tflite.TensorAddName(self.b, text)
        self.tensors.append(int(tflite.TensorEnd(self.b)))
        return len(self.tensors) - 1

    def operator(
        self, code: int, inputs: list[int], output: int, kind: int = 0, options: int = 0
    ) -> None:
        tflite.OperatorCodeStart(self.b)
        tflite.OperatorCodeAddDeprecatedBuiltinCode(self.b, code)
        tflite.OperatorCodeAddBuiltinCode(self.b, code)
        tflite.OperatorCodeAddVersion(self.b, 1)
        self.codes.append(int(tflite.OperatorCodeEnd(self.b)))
        ins = self._ints(tflite.OperatorStartInputsVector, inputs)
        outs = self._ints(tflite.OperatorStartOutputsVector, [output])
        tflite.OperatorStart(self.b)
        tflite.OperatorAddOpcodeIndex(self.b, len(self.codes) - 1)
        tflite.OperatorAddInputs(self.b, ins)
        tflite.OperatorAddOutputs(self.b, outs)
        if options:
            tflite.OperatorAddBuiltinOptionsType(self.b, kind)
            tflite.OperatorAddBuiltinOptions(self.b, options)
        self.operators.append(int(tflite.OperatorEnd(self.b)))

    def finish(self, input_: int, output: int) -> bytes:
        tensors = self._tables(tflite.SubGraphStartTensorsVector, self.tensors)
        ins = self._ints(tflite.SubGraphStartInputsVector, [input_])
        outs = self._ints(tflite.SubGraphStartOutputsVector, [output])
        operators = self._tables(tflite.SubGraphStartOperatorsVector, self.operators)
        tflite.SubGraphStart(self.b)
        tflite.SubGraphAddTensors(self.b, tensors)
        tflite.SubGraphAddInputs(self.b, ins)
        tflite.SubGraphAddOutputs(self.b, outs)
        tflite.SubGraphAddOperators(self.b, operators)
        graph = int(tflite.SubGraphEnd(self.b))
        codes = self._tables(tflite.ModelStartOperatorCodesVector, self.codes)
        graphs = self._tables(tflite.ModelStartSubgraphsVector, [graph])
        buffers = self._tables(tflite.ModelStartBuffersVector, self.buffers)
        tflite.ModelStart(self.b)
        tflite.ModelAddVersion(self.b, _VERSION)
        tflite.ModelAddOperatorCodes(self.b, codes)
        tflite.ModelAddSubgraphs(self.b, graphs)
        tflite.ModelAddBuffers(self.b, buffers)
        self.b.Finish(tflite.ModelEnd(self.b), _IDENTIFIER)
        return bytes(self.b.Output())


def write(path: Path, op: dict[str, Any], constants: dict[str, Array]) -> None:
    """`op` and `constants` as `cases.Case` describes them: matmul, conv or depthwise."""
    w = _Writer()
    path.write_bytes(_matmul(w, op, constants) if op["op"] == "matmul" else _conv(w, op, constants))


def _matmul(w: _Writer, op: dict[str, Any], constants: dict[str, Array]) -> bytes:
    m, k, n = op["m"], op["k"], op["n"]
    x, y = w.tensor("x", (m, k)), w.tensor("y", (m, n))
    weights = w.tensor("w", (n, k), constants["w"].T)
    bias = w.tensor("b", (n,), np.zeros(n, np.float32))
    tflite.FullyConnectedOptionsStart(w.b)
    options = tflite.FullyConnectedOptionsEnd(w.b)
    kind = tflite.BuiltinOptions.FullyConnectedOptions
    w.operator(tflite.BuiltinOperator.FULLY_CONNECTED, [x, weights, bias], y, kind, options)
    return w.finish(x, y)


def _conv(w: _Writer, op: dict[str, Any], constants: dict[str, Array]) -> bytes:
    size, stride, pad, kernel = op["size"], op["stride"], op["pad"], op["kernel"]
    out = -(-size // stride)
    depthwise = op["op"] == "depthwise"
    x = image = w.tensor("x", (1, size, size, op["cin"]))
    y = w.tensor("y", (1, out, out, op["cout"]))
    same = stride == 1 and kernel // 2 == pad
    if not same:  # LiteRT has no padding at both sides with a stride
        amounts = np.array([[0, 0], [pad, pad], [pad, pad], [0, 0]], np.int32)
        image = w.tensor("padded", (1, size + 2 * pad, size + 2 * pad, op["cin"]))
        w.operator(tflite.BuiltinOperator.PAD, [x, w.tensor("pads", (4, 2), amounts)], image)
    # ONNX: [cout, cin / groups, kh, kw].
    weights = constants["w"].transpose((1, 2, 3, 0) if depthwise else (0, 2, 3, 1))
    inputs = [image, w.tensor("w", weights.shape, weights)]
    inputs.append(w.tensor("b", constants["b"].shape, constants["b"]))
    padding = tflite.Padding.SAME if same else tflite.Padding.VALID
    if depthwise:
        tflite.DepthwiseConv2DOptionsStart(w.b)
        tflite.DepthwiseConv2DOptionsAddPadding(w.b, padding)
        tflite.DepthwiseConv2DOptionsAddStrideW(w.b, stride)
        tflite.DepthwiseConv2DOptionsAddStrideH(w.b, stride)
        tflite.DepthwiseConv2DOptionsAddDepthMultiplier(w.b, 1)
        options = tflite.DepthwiseConv2DOptionsEnd(w.b)
        kind, code = tflite.BuiltinOptions.DepthwiseConv2DOptions, "DEPTHWISE_CONV_2D"
    else:
        tflite.Conv2DOptionsStart(w.b)
        tflite.Conv2DOptionsAddPadding(w.b, padding)
        tflite.Conv2DOptionsAddStrideW(w.b, stride)
        tflite.Conv2DOptionsAddStrideH(w.b, stride)
        options = tflite.Conv2DOptionsEnd(w.b)
        kind, code = tflite.BuiltinOptions.Conv2DOptions, "CONV_2D"
    w.operator(getattr(tflite.BuiltinOperator, code), inputs, y, kind, options)
    return w.finish(x, y)
