"""Files of tensors and plain values: safetensors with JSON in its metadata, written in one step and checked when read.

Any program that reads safetensors reads the tensors. Reading runs nothing: there is no pickle in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

Path_ = str | os.PathLike[str]

_DOCUMENT, _DIGEST = "nnlib", "nnlib_sha256"
_TENSOR, _TUPLE, _PAIRS = "$tensor", "$tuple", "$pairs"


def write_file(path: Path_, tensors: Mapping[str, torch.Tensor], document: Any) -> None:
    """Writes tensors and a JSON document as one safetensors file; a file that is there is replaced only when the new
    one is whole. Raises OSError if it cannot be written."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: its folder must be there, got {str(path.parent)!r}, which is not")
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    seen: set[int] = set()
    for name, tensor in ready.items():  # the format has no tensors that share memory
        if tensor.numel() and tensor.data_ptr() in seen:
            ready[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    text = json.dumps(document, separators=(",", ":"))
    content = safetensors.torch.save(ready, {_DOCUMENT: text, _DIGEST: _digest(ready, text)})
    # In the same folder, since a file moves in one step only within a disk.
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def read_file(path: Path_) -> tuple[dict[str, torch.Tensor], Any]:
    """(tensors, document) of a file that write_file wrote.

    Raises FileNotFoundError if there is none; ValueError naming the file if it is cut off, altered, or another's.
    """
    tensors, text = _read(path)
    if text is None:
        raise ValueError(f"{path}: a file written by nnlib is expected, got one without its description")
    try:
        return tensors, json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its description must be JSON: {error}") from error


def read_tensors(path: Path_) -> dict[str, torch.Tensor]:
    """The tensors of any safetensors file. Raises as read_file does, but for another's file."""
    return _read(path)[0]


def _read(path: Path_) -> tuple[dict[str, torch.Tensor], str | None]:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: a file is expected, there is none")
    if not path.is_file():
        raise ValueError(f"{path}: a file is expected, got a folder")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    # The package has an error type of its own for what is no such file; some dtypes of the format torch does not have.
    except (safetensors.SafetensorError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: a whole safetensors file is expected: {error}") from error
    text = metadata.get(_DOCUMENT)
    if text is not None and metadata.get(_DIGEST) != _digest(tensors, text):
        raise ValueError(f"{path}: the file was altered since it was written: its checksum differs")
    return tensors, text


def _digest(tensors: Mapping[str, torch.Tensor], text: str) -> str:
    """SHA-256 of everything: names, types, shapes, bytes and text."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# Dictionaries and lists with tensors in them.


def write_tree(path: Path_, tree: Any, kind: str) -> None:
    """Writes nested dictionaries, lists and tuples of tensors and plain values. kind: what read_tree asks for.

    Raises TypeError for a value of another kind.
    """
    tensors: dict[str, torch.Tensor] = {}
    document = {"kind": kind, "tree": pack(tree, tensors)}
    write_file(path, tensors, document)


def read_tree(path: Path_, kind: str) -> Any:
    """What write_tree wrote. Raises as read_file does, and ValueError if it is of another kind."""
    tensors, document = read_file(path)
    if not isinstance(document, dict) or document.get("kind") != kind:
        raise ValueError(f"{path}: a {kind} is expected, got another file of nnlib's")
    return unpack(document["tree"], tensors)


def pack(tree: Any, tensors: dict[str, torch.Tensor], name: str = "tree") -> Any:
    """The tree as JSON; its tensors go into `tensors`, under names that begin with `name`."""
    if isinstance(tree, torch.Tensor):
        tensors[name] = tree
        return {_TENSOR: name}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    if isinstance(tree, (list, tuple)):
        entries = [pack(entry, tensors, f"{name}/{i}") for i, entry in enumerate(tree)]
        return {_TUPLE: entries} if isinstance(tree, tuple) else entries
    if isinstance(tree, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in tree):
            return {key: pack(value, tensors, f"{name}/{key}") for key, value in tree.items()}
        return {_PAIRS: [[pack(key, tensors), pack(value, tensors, f"{name}/{key}")] for key, value in tree.items()]}
    raise TypeError(f"{name}: tensors and plain values are expected, got {tree!r}")


def unpack(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The reverse of `pack`. Raises ValueError for a tensor that is not there."""
    if isinstance(tree, list):
        return [unpack(entry, tensors) for entry in tree]
    if not isinstance(tree, dict):
        return tree
    if _TENSOR in tree:
        if tree[_TENSOR] not in tensors:
            raise ValueError(f"tensor {tree[_TENSOR]!r} is expected in the file, it is missing")
        return tensors[tree[_TENSOR]]
    if _TUPLE in tree:
        return tuple(unpack(entry, tensors) for entry in tree[_TUPLE])
    if _PAIRS in tree:
        return {unpack(key, tensors): unpack(value, tensors) for key, value in tree[_PAIRS]}
    return {key: unpack(value, tensors) for key, value in tree.items()}
