"""Tensors as they are stored, by name: their bytes, their hash, and what each is held against
before anything is made of it."""

import hashlib

import torch

Tensors = dict[str, torch.Tensor]
FLOATS = (torch.float16, torch.bfloat16, torch.float32)  # plain numbers; 16 bits as they are stored


def nbytes(tensors: Tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def shared_out(bits: torch.Tensor, stored: Tensors) -> torch.Tensor:
    """(tokens,) float64 bits of tokens, and an even share of all bits of `stored` beside them."""
    return bits + (8 * nbytes(stored) - bits.sum()) / len(bits)


def taken(
    stored: Tensors, name: str, dtypes: tuple[torch.dtype, ...], *sizes: int | None
) -> torch.Tensor:
    """Takes a tensor out of what is stored; None stands for any size from 1. Raises ValueError for
    one that is not there, or is not what it must be: nothing may be made in proportion to sizes
    that are only claimed."""
    if name not in stored:
        raise ValueError(f"{name} is not there")
    tensor = stored.pop(name)
    pairs = zip(tensor.shape, sizes, strict=False)
    fits = tensor.ndim == len(sizes) and all(n == size or (size is None and n) for n, size in pairs)
    if tensor.dtype not in dtypes or not fits:
        words = " x ".join("any" if size is None else str(size) for size in sizes)
        raise ValueError(
            f"{name} holds {tensor.dtype} {tuple(tensor.shape)} where "
            f"{' or '.join(map(str, dtypes))} of {words} is due"
        )
    return tensor


def under(stored: Tensors, prefix: str) -> Tensors:
    """Takes out what is stored under names that begin so, by the rest of the name."""
    names = [name for name in stored if name.startswith(prefix)]
    return {name.removeprefix(prefix): stored.pop(name) for name in names}


def refuse_left(stored: Tensors) -> None:
    """Raise ValueError where something is left that nothing was made of."""
    if stored:
        raise ValueError(f"{min(stored)} belongs to nothing")


def refuse_beyond(indices: torch.Tensor, n: int, name: str) -> None:
    """Raise ValueError for indices that are not all of 0 to n - 1."""
    if indices.numel() and not (int(indices.min()) >= 0 and int(indices.max()) < n):
        raise ValueError(f"{name} points beyond the {n} that there are")


def digest(tensors: Tensors) -> str:
    """A hash of names, dtypes, shapes and content."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha256.update(raw(tensor).numpy().tobytes())
    return sha256.hexdigest()


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """(bytes,) of the content."""
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype)  # of stride 1
    flat.copy_(tensor.flatten())
    return flat.view(torch.uint8)
