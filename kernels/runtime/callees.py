"""Kernels as compiled code calls them: linked into the caller, which alone is optimized and made machine code.

Numba optimizes every function and makes machine code of it before it links the function into its callers, where all
of that is done again, on each level of calls anew. Here a function that compiled code calls has a second form, which
stops at LLVM code; the form that Python calls is compiled when Python calls it.
"""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import binding
from numba.core import codegen, compiler, registry
from numba.core.environment import lookup_environment

#: How Numba names the global in which a function's code finds its environment (what it prints and raises).
_ENVIRONMENT = "_ZN08NumbaEnv"

# Types that Numba has in part, and wrong.
CompileResult: Any = compiler.CompileResult
_Dispatcher: Any = registry.CPUDispatcher


class KernelLibrary(codegen.JITCodeLibrary):
    """Code that Python calls, with all that it calls linked in."""

    def _optimize_final_module(self) -> None:
        super()._optimize_final_module()
        # Loops that come out of inlining get what a function of their own gets: without this some are a quarter slower.
        manager, builder = self._codegen._module_pass_manager()
        manager.run(self._final_module, builder)


class KernelCompiler(compiler.Compiler):
    """Numba's compiler, for code that Python calls."""

    def compile_extra(self, function: Any) -> Any:
        """The compiled function."""
        library = KernelLibrary(self.state.targetctx.codegen(), function.__qualname__)
        library.enable_object_caching()
        self.state.library = library
        return super().compile_extra(function)


class CalleeLibrary(codegen.JITCodeLibrary):
    """LLVM code to be linked into that of callers."""

    def finalize(self) -> None:
        """Link what this code calls into it, and leave the rest to the callers."""
        self._raise_if_finalized()
        for library in dict.fromkeys(self._linking_libraries):
            if hasattr(self, "_reload_init"):  # of Numba's parallel loops; until some version nobody hands it on
                self._reload_init.update(library._reload_init)
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalize_dynamic_globals()
        self._finalized = True

    def serialize_using_object_code(self) -> tuple[str, bytes]:
        """What `rebuilt` takes; the name is Numba's."""
        self._ensure_finalized()
        return self.name, self._final_module.as_bitcode()

    @classmethod
    def rebuilt(cls, target: Any, name: str, code: bytes) -> CalleeLibrary:
        """The library that `serialize_using_object_code` wrote down."""
        library = cls(target, name)
        library._final_module = binding.parse_bitcode(code)
        library._finalized = True
        return library


class CalleeCompiler(compiler.Compiler):
    """Numba's compiler, as far as LLVM code."""

    def compile_extra(self, function: Any) -> Any:
        """The compiled function, ready to be called by others that are being compiled."""
        state = self.state
        state.flags.no_compile = True
        state.library = CalleeLibrary(state.targetctx.codegen(), function.__qualname__)
        result = super().compile_extra(function)._replace(entry_point=_entry())
        result.target_context.insert_user_function(result.entry_point, result.fndesc, [result.library])
        return result


def _entry() -> Any:
    """A new built-in function, by which Numba knows a callee: it keeps what Python calls there."""
    return [].append


def rebuild(target_context: Any, library: tuple[str, bytes], description: Any, environment: Any, *rest: Any) -> Any:
    """The callee of which `CompileResult._reduce` wrote these down."""
    signature, objectmode, lifted, annotation, reload_init, environments = rest
    return CompileResult(
        typing_context=target_context.typing_context,
        target_context=target_context,
        entry_point=_entry(),
        typing_error=None,
        type_annotation=annotation,
        signature=signature,
        objectmode=objectmode,
        lifted=lifted,
        fndesc=description,
        library=CalleeLibrary.rebuilt(target_context.codegen(), *library),
        call_helper=None,
        environment=environment,
        metadata=None,
        reload_init=reload_init,
        referenced_envs=environments,
    )


def fill_environments(result: Any) -> None:
    """Give freshly compiled code the environments of its callees; Numba sees to that of the function itself."""
    for variable in result.library._final_module.global_variables:
        environment = lookup_environment(variable.name) if variable.name.startswith(_ENVIRONMENT) else None
        if environment is not None:
            result.library.codegen.set_env(variable.name, environment)


class Callee(_Dispatcher):
    """The form of a kernel that compiled code calls.

    Attributes:
        kernel: whose form it is.
    """

    kernel: Kernel

    def __call__(self, *arguments: Any) -> None:
        """Raises TypeError: there is no machine code to call."""
        raise TypeError(f"the callee of {self.py_func.__name__} can only be called by compiled code")


class Kernel(_Dispatcher):
    """A function that Python and compiled code may call, compiled for each when it does."""

    @functools.cached_property
    def callee(self) -> Callee:
        """The form that compiled code calls."""
        options = {**self.targetoptions, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
        callee = Callee(self.py_func, self.locals, options, CalleeCompiler)
        callee.kernel = self
        callee._cache = type(self._cache)(callee)
        # Numba asks the function that the code names whether it is being compiled: that is how one may call itself.
        callee._compiling_counter = self._compiling_counter
        return callee

    def get_call_template(self, arguments: Any, keywords: Any) -> Any:
        """Numba's question for the types of a call in compiled code."""
        return self.callee.get_call_template(arguments, keywords)

    def get_overload(self, signature: Any) -> Any:
        """Numba's question for the code of such a call."""
        return self.callee.get_overload(signature)

    def get_compile_result(self, signature: Any) -> Any:
        """The same with all that Numba knows of it."""
        return self.callee.get_compile_result(signature)
