"""Arrays at bare addresses, for calls so small that NumPy's view of a tensor costs more than their kernel.

Whoever passes an address keeps what lies there alive.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array


@intrinsic
def array_at(typing_context, like, place, count):
    """The `count` elements at a place as a 1-d array of the element type of the array `like`."""
    if not isinstance(like, types.Array) or not isinstance(count, types.Integer):
        return None
    result = types.Array(like.dtype, 1, "C")
    if place == result:
        return result(like, place, types.intp), _itself
    if not isinstance(place, types.Integer):
        return None

    def at_address(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        _, address, size = arguments
        array = context.make_array(result)(context, builder)
        item = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(like.dtype)))
        populate_array(
            array,
            data=builder.inttoptr(address, array.data.type),
            shape=cgutils.pack_array(builder, [size]),
            strides=cgutils.pack_array(builder, [item]),
            itemsize=item,
            meminfo=ir.Constant(context.get_value_type(types.MemInfoPointer(types.voidptr)), None),
        )
        return array._getvalue()

    return result(like, types.intp, types.intp), at_address


def _itself(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
    return impl_ret_borrowed(context, builder, signature.return_type, arguments[1])
