"""What the fake CuPy has seen of a GPU that is not there: launches, copies, waits, and what is current."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Launch:
    """One launch: its kernel, and the device and stream that were current."""

    kernel: str
    device: int
    stream: int


@dataclass
class Gpu:
    """What the fake has seen.

    Attributes:
        device, stream: those that are current; stream 0 is the default one.
        launches: in order.
        copied: arrays that went to a device, and that came back.
        capability: of every device.
        waits: how often the host waited for a device.
        capturing: whether the current stream is being captured.
    """

    device: int = 0
    stream: int = 0
    launches: list[Launch] = field(default_factory=list)
    copied: dict[str, int] = field(default_factory=lambda: {"over": 0, "back": 0})
    capability: str = "90"
    waits: int = 0
    capturing: bool = False


_current = [Gpu()]


def gpu() -> Gpu:
    """The one that the fake is beside."""
    return _current[0]


def begin() -> None:
    """Another one takes its place, which has seen nothing."""
    _current[0] = Gpu()
