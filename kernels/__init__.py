"""Hand-written neural-network kernels on NumPy arrays and torch tensors."""
from kernels.backends import BackendError
from kernels.conv2d.op import conv2d, conv_transpose2d
from kernels.dispatch import use_backend
from kernels.inspection import Explanation, explain, vjp
