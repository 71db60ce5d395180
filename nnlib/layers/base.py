"""What every layer is: a torch.nn.Module that is built on first use, with a name, a backend and clear errors."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from numbers import Integral
from typing import Any, ClassVar

import torch

from nnlib import activity, constraints, ops, regularizers
from nnlib.calling import Called, in_mode
from nnlib.checks import default_dtype, positive_integer, usable_device
from nnlib.configuration import Recorded
from nnlib.constraints import ConstraintChoice
from nnlib.initializers import InitializerChoice, fill
from nnlib.layers.padding import note_lengths, noted_lengths
from nnlib.layers.rules import View, WeightRule, features_last, look_up_rule, losses_of, unchanged

# Sizes of a tensor, the batch first; None is a size that is not fixed, as in Keras.
Shape = tuple[int | None, ...]


class Layer(Recorded, Called):
    """The base of all layers.

    A subclass writes `call`, and where it has them `build` (its parameters, see add_weight), `compute_output_shape` and
    `expected_input`. Parameters are made by `build`, on first use or when `input_shape` is known. A layer may be made
    of others: those are its attributes, and share its backend. Calls take NumPy arrays too, and training=True or False
    for one call (see nnlib.calling.Called).

    input_shape: sizes of one sample, without the batch; given, a Sequential builds the layer at once. input_dim: the
    same for samples of one axis. dtype: torch's default one, or its name; no other (see torch.set_default_dtype).
    activity_regularizer: a penalty on the output (see nnlib.regularizers), over the number of its rows.
    Layers with weights also take kernel_regularizer, bias_regularizer, kernel_constraint, bias_constraint and the like,
    where Keras has them and by its names: see nnlib.regularizers and nnlib.constraints.
    trainable: False for weights that training leaves as they are; it can be set later too.
    device: where the parameters are made (default: torch's default device); `.to()` moves them later.
    backend: the kernels' backend for this layer (default None: the model's, or else kernels' own choice).
    name: unique within a model (default: the class' name in lower case, with a number where it is needed).

    Sequences of different lengths lie in one array (N, T, ...) with padding. Embedding(mask_zero=True) and Masking find
    the real steps, and a layer's output tells the next one: `lengths` (N,), int64, where all padding is at the end of
    its row, else a mask (N, T), bool. Layers with `takes_lengths` are given them unless the call says lengths= or
    mask=, and `output_lengths` says what they are further on. See nnlib.layers.padding.
    """

    #: False for layers that also take integers.
    needs_floating_input = True
    #: True where the output has the shape of the input.
    keeps_shape = False
    #: True where `forward` takes apply_softmax=False, to give the logits under a final softmax.
    ends_in_softmax = False
    #: True where `forward` takes lengths=.
    takes_lengths = False
    #: True where a step of the output belongs to the same step of the input, so that lengths stay what they are.
    keeps_lengths = False
    #: For which weights there is a NAME_regularizer, and for which a NAME_constraint, besides NAME_initializer.
    regularized: ClassVar[tuple[str, ...]] = ()
    constrained: ClassVar[tuple[str, ...]] = ()
    #: What `build()` without a shape builds for, where the parameters do not depend on it.
    shape_to_build: ClassVar[Shape | None] = None

    def __init__(
        self,
        *,
        input_shape: Sequence[int | None] | None = None,
        input_dim: int | None = None,
        dtype: torch.dtype | str | None = None,
        activity_regularizer: regularizers.RegularizerChoice = None,
        trainable: bool = True,
        device: torch.device | str | None = None,
        backend: str | None = None,
        name: str | None = None,
        **rules: Any,
    ) -> None:
        super().__init__()
        default_dtype(dtype)
        usable_device("device", device)
        if input_dim is not None:
            if input_shape is not None:
                raise ValueError(f"input_dim: input_shape or input_dim is expected, got both, {input_dim!r}")
            input_shape = (positive_integer("input_dim", input_dim),)
        if input_shape is not None and not (
            isinstance(input_shape, (list, tuple))
            and all(size is None or (isinstance(size, Integral) and int(size) > 0) for size in input_shape)
        ):
            raise ValueError(f"input_shape: a tuple of positive integers or None is expected, got {input_shape!r}")
        if name is not None and not (isinstance(name, str) and re.fullmatch(r"\w+", name)):
            raise ValueError(f"name: letters, digits and underscores are expected, got {name!r}")
        self.name = name or self.default_name()
        self.has_own_name = name is not None
        self.activity_regularizer = regularizers.get(activity_regularizer, "activity_regularizer")
        activity.Use.ever = activity.Use.ever or self.activity_regularizer is not None
        for kind, parts in (("regularizer", self.regularized), ("constraint", self.constrained)):
            for part in parts:
                setattr(self, f"{part}_{kind}", None)
        for option, value in rules.items():
            setattr(self, option, look_up_rule(type(self).__name__, option, value, self.regularized, self.constrained))
        #: By the names of the parameters.
        self.weight_rules: dict[str, WeightRule] = {}
        # Of what add_weight has made, by id, until it is an attribute.
        self._unnamed: dict[int, WeightRule] = {}
        self.device = device
        self._backend = backend
        self.trainable = trainable
        self.built = False
        self._is_building = False
        self.given_input_shape: Shape | None = None if input_shape is None else (None, *input_shape)
        self.built_input_shape: Shape | None = None
        # The last input shape that was looked at, without the batch: most calls bring it again.
        self._fitting_shape: Shape | None = None

    @property
    def backend(self) -> str | None:
        """The kernels' backend for this layer; setting it sets it for the layers inside too."""
        return self._backend

    @backend.setter
    def backend(self, backend: str | None) -> None:
        self._backend = backend
        for module in self.children():
            for layer in module.modules():
                if isinstance(layer, Layer):
                    layer._backend = backend

    def to_backend(self, backend: str | None) -> Layer:
        """Sets `backend` and returns the layer, as Model.to_backend does for a model."""
        self.backend = backend
        return self

    def adopt(self, backend: str | None, device: torch.device | str | None) -> None:
        """Takes a model's backend and device where the layer, or one inside it, names none."""
        for layer in self.modules():
            if isinstance(layer, Layer):
                layer._backend = layer._backend or backend
                layer.device = layer.device or device

    @classmethod
    def default_name(cls) -> str:
        """Keras' name of a layer: the class' in snake case (MaxPooling2D -> max_pooling2d)."""
        name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", cls.__name__.lstrip("_"))
        return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "build" in vars(cls):
            cls.build = _only_once(cls.build)  # type: ignore[method-assign, assignment]

    def get_config(self, classes: Mapping[str, type] | None = None) -> dict[str, Any]:
        """As Recorded.get_config, with `trainable` as it is now where it is not the default."""
        config = super().get_config(classes)
        config.pop("trainable", None)
        return config if self.trainable else config | {"trainable": False}

    def build(self, input_shape: Shape) -> None:
        """Makes the parameters for inputs of this shape, batch first. A layer without parameters has nothing to do.

        A subclass writes it; whoever calls it builds the layer, once: it is then build_once.
        """

    def call(self, x: torch.Tensor) -> Any:
        """The layer's output for x. A subclass may take more arguments, which `forward` hands on."""
        raise NotImplementedError(f"{type(self).__name__} must define call(x)")

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """The output's shape for inputs of this shape, batch first. By default the same where `keeps_shape` says so, or
        a size is not known; else that of a call on zeros."""
        if self.keeps_shape or not self.built or None in input_shape[1:]:
            return input_shape
        sizes = tuple(size or 1 for size in input_shape)
        with in_mode(self, training=False), torch.no_grad():
            output = self.call(torch.zeros(sizes, device=self.device))
        first = output[0] if isinstance(output, (tuple, list)) else output
        return (input_shape[0], *first.shape[1:])

    def output_lengths(self, x: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor | None:
        """The lengths of the output's rows, None when there is no padding or it is no longer told apart.

        x: the input; lengths: of its rows, or a mask. Warns where padding is from here on treated like any other step.
        """
        if lengths is None or self.keeps_lengths:
            return lengths
        if not self.takes_lengths:
            warnings.warn(
                f"{self.name}: a {type(self).__name__} treats padded steps like any other; the lengths end here",
                stacklevel=2,
            )
        return None

    def absorb(self, following: Sequence[Layer]) -> tuple[int, dict[str, Any]]:
        """How many of the layers that follow in a Sequential this one's kernel can do in the same pass, and the
        options of `forward` that ask for it. By default none."""
        return 0, {}

    def expected_input(self) -> tuple[int | str, ...]:
        """The pattern that input shapes must fit: a number is fixed, a letter free, a leading "..." any axes."""
        return ("...",)

    def forward(self, x: torch.Tensor, *more: Any, **options: Any) -> Any:
        """Builds the layer on first use, checks x, and returns call(x, *more, **options).

        Raises ValueError if x's shape does not fit the layer, TypeError if it must be floating point and is not.
        """
        if not isinstance(x, torch.Tensor):
            got = type(x).__name__ + getattr(x, "no_value", "")
            raise TypeError(f"{self.name}: input must be a tensor or a NumPy array, got {got}")
        shape = tuple(x.shape)
        if not self.built or shape[1:] != self._fitting_shape or torch.compiler.is_compiling():
            self.build_once(shape)
            self._fitting_shape = shape[1:]
        if self.needs_floating_input and not x.is_floating_point():
            raise TypeError(f"{self.name}: input must be floating point, got {x.dtype}; images: x / 255.0")
        lengths = noted_lengths(x)
        if lengths is not None and self.takes_lengths and options.get("mask") is None:
            options.setdefault("lengths", lengths)
        output = self.call(x, *more, **options)
        note_lengths(output, self.output_lengths(x, lengths))
        if self.activity_regularizer is not None:
            if torch.compiler.is_compiling():
                raise RuntimeError(f"{self.name}: activity_regularizer does not work under torch.compile")
            activity.note(self, self.activity_regularizer, output)
        return output

    @property
    def losses(self) -> list[torch.Tensor]:
        """What the regularizers of the layer, and of those inside, come to: scalar tensors, those of outputs in the
        last call first."""
        return losses_of(self)

    def build_once(self, input_shape: Shape) -> None:
        """Builds the layer for inputs of this shape, batch first; a layer that is built stays as it is.

        Raises ValueError naming the layer if the shape does not fit.
        """
        self.check_input_shape(input_shape)
        if self.built:
            return
        self.compute_output_shape(input_shape)  # raises if a window does not fit
        self._is_building = True
        try:
            self.build(input_shape)
        finally:
            self._is_building = False
        if self._unnamed:
            raise TypeError(f"{self.name}: what add_weight makes must become an attribute of the layer itself")
        for part in self.children():
            part.train(self.training)  # what build made is in the layer's mode
        self.hold_frozen()
        self.built_input_shape = (None, *input_shape[1:])
        self.built = True

    def add_weight(
        self,
        shape: Sequence[int] = (),
        initializer: InitializerChoice | None = None,
        dtype: torch.dtype | str | None = None,
        trainable: bool = True,
        *,
        regularizer: regularizers.RegularizerChoice = None,
        constraint: ConstraintChoice = None,
        name: str | None = None,
    ) -> torch.nn.Parameter:
        """A new weight for a layer of one's own, as in Keras: self.scale = self.add_weight((features,), "ones").

        shape, initializer (default "glorot_uniform", of at least one axis, else "zeros"): see nnlib.initializers.
        dtype: as of a layer. trainable: False for one that training leaves as it is. regularizer, constraint: see
        nnlib.regularizers and nnlib.constraints. name: for messages; in state_dict it has the attribute's.
        """
        default_dtype(dtype)
        weight = torch.empty(tuple(shape), device=self.device)
        choice = initializer or ("glorot_uniform" if weight.dim() else "zeros")
        fill(f"{self.name}: {name or 'weight'}: initializer", choice, weight, unchanged)
        made = torch.nn.Parameter(weight, requires_grad=trainable)
        rule = WeightRule(
            unchanged, regularizers.get(regularizer, "regularizer"), constraints.get(constraint, "constraint")
        )
        self._unnamed[id(made)] = rule
        return made

    def register_parameter(self, name: str, param: torch.nn.Parameter | None) -> None:
        """torch's, which an assignment calls; a weight of add_weight gets its name here."""
        super().register_parameter(name, param)
        rule = self._unnamed.pop(id(param), None)
        if rule is not None and (rule.regularizer is not None or rule.constraint is not None):
            self.weight_rules[name] = rule

    def add_parameter(
        self,
        name: str,
        shape: Sequence[int],
        choice: InitializerChoice,
        argument: str,
        view: View = features_last,
        rule_view: View | None = None,
    ) -> None:
        """Registers a parameter `name` of torch's default dtype, filled by the initializer `choice`.

        argument: of the layer, such as "kernel_initializer"; the layer's kernel_regularizer and kernel_constraint then
        hold for the parameter. view: the parameter -> a view in Keras' layout (default: of torch's (out, in, *window)),
        which initializers and rules see. rule_view: another for the rules.
        """
        weight = torch.empty(tuple(shape), device=self.device)
        fill(f"{self.name}: {argument}", choice, weight, view)
        self.register_parameter(name, torch.nn.Parameter(weight))
        part = argument.removesuffix("_initializer")
        rule = WeightRule(
            rule_view or view, getattr(self, f"{part}_regularizer", None), getattr(self, f"{part}_constraint", None)
        )
        if rule.regularizer is not None or rule.constraint is not None:
            self.weight_rules[name] = rule

    def run(self, op: str, *arguments: Any, **options: Any) -> Any:
        """Calls kernels.<op> with this layer's backend."""
        return ops.call(self.name, op, *arguments, backend=self.backend, **options)

    def check_input_shape(self, shape: Shape) -> None:
        """Raises ValueError naming the layer, the shape that it expects and this one, if they do not fit.

        A size that is not known (None) fits any.
        """
        pattern = self.expected_input()
        sizes: Sequence[int | None] = shape
        fixed: Sequence[int | str] = pattern
        if pattern[0] == "...":
            fixed = pattern[1:]
            sizes = shape[len(shape) - len(fixed) :] if len(shape) >= len(fixed) else shape
        fits = len(sizes) == len(fixed) and all(
            isinstance(want, str) or size in (want, None) for size, want in zip(sizes, fixed, strict=True)
        )
        if not fits:
            wanted = f"({', '.join(str(size) for size in pattern)}{',' if len(pattern) == 1 else ''})"
            raise ValueError(f"{self.name}: input must have shape {wanted}, got {tuple(shape)}")

    def count_parameters(self) -> int:
        """How many numbers the layer's parameters hold."""
        return sum(math.prod(parameter.shape) for parameter in self.parameters())

    def extra_repr(self) -> str:
        return f"name={self.name!r}" + (f", backend={self.backend!r}" if self.backend else "")


def _only_once(build: Callable[[Any, Shape], None]) -> Callable[[Any, Shape], None]:
    """A subclass' build, which build_once calls, and everybody else calls build_once by."""

    @wraps(build)
    def build_or_build_once(self: Any, input_shape: Shape | None = None) -> None:
        shape = input_shape or self.given_input_shape or self.shape_to_build
        if shape is None:
            raise ValueError(f"{self.name}: build needs an input_shape, batch first, got None")
        if self._is_building:
            build(self, shape)
        else:
            self.build_once(tuple(shape))

    return build_or_build_once
