"""The operators that a served graph may have: ONNX's own, from numbers to numbers, without chance, loops or strings.

A list of what is allowed and not of what is not: the standard grows, by decoders of images for example, and each
operator is code of ONNX Runtime that reads what somebody else wrote.
"""

from typing import Final

_ARITHMETIC: Final = (
    "Abs Acos Acosh Add Asin Asinh Atan Atanh Ceil Clip Cos Cosh Div Einsum Erf Exp Floor Gemm Log MatMul "
    "MatMulInteger Max Mean Min Mod Mul Neg Pow Reciprocal Round Sign Sin Sinh Sqrt Sub Sum Tan Tanh"
)
_LOGIC: Final = "And Equal Greater GreaterOrEqual If IsInf IsNaN Less LessOrEqual Not Or Where Xor"
_SHAPES: Final = (
    "Cast CastLike Compress Concat Constant ConstantOfShape Expand Flatten Gather GatherElements GatherND Identity "
    "NonZero OneHot Pad Range Reshape ReverseSequence Scatter ScatterElements ScatterND Shape Size Slice Split Squeeze "
    "Tile Transpose Trilu Unique Unsqueeze"
)
_REDUCTIONS: Final = (
    "ArgMax ArgMin CumSum ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
    "ReduceSum ReduceSumSquare TopK"
)
_LAYERS: Final = (
    "Attention AveragePool BatchNormalization Celu Conv Dropout Elu GRU Gelu GlobalAveragePool GlobalMaxPool "
    "GroupNormalization HardSigmoid HardSwish Hardmax InstanceNormalization LSTM LayerNormalization LeakyRelu "
    "LogSoftmax LpNormalization MaxPool MeanVarianceNormalization Mish PRelu RMSNormalization RNN Relu RotaryEmbedding "
    "Selu Shrink Sigmoid Softmax Softplus Softsign Swish ThresholdedRelu"
)
_QUANTIZED: Final = (
    "ConvInteger DequantizeLinear DynamicQuantizeLinear QLinearConv QLinearMatMul QuantizeLinear "
    "BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor"
)

SERVED: Final = frozenset(
    " ".join((_ARITHMETIC, _LOGIC, _SHAPES, _REDUCTIONS, _LAYERS, _QUANTIZED)).encode().split()
)  # fmt: skip
"""By name, as a file has them."""
LOOPS: Final = frozenset((b"Loop", b"Scan", b"SequenceMap"))
COMPLETE: Final = frozenset(b"Concat Einsum LayerNormalization Max Mean Min Sum".split())
"""Those without an input that may be left out, by the standard, or else by ONNX Runtime 1.31: it ends its process."""
