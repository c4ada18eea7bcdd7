"""Where the parts of a model are that is spread over cards, memory and disk by accelerate."""

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

HOST = ("cpu", "disk")  # where parts wait that no card has room for


def spread() -> dict[str, Any]:
    """What `from_pretrained` is told, to fill all cards, then memory, then disk. Weights that
    cannot be read from where they lie go into a temporary folder, which goes with the process."""
    folder = tempfile.mkdtemp(prefix="kv-cache-weights-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return {"device_map": "auto", "offload_folder": folder}


def of_input(model: torch.nn.Module) -> torch.device | None:
    """Where a spread model takes its tokens; None for one that is in one place."""
    devices = _devices(model)
    cards = [device for device in devices if device not in HOST]
    return torch.device(cards[0] if cards else "cpu") if devices else None


def is_offloaded(model: torch.nn.Module) -> bool:
    """Whether weights are brought to where they are used for as long as they are."""
    return any(getattr(_hook(module), "offload", False) for module in model.modules())


def words(model: torch.nn.Module) -> str:
    """ "cuda:0 + cpu + disk"; empty for a model that is in one place."""
    return " + ".join(map(_named, _devices(model)))


@contextmanager
def at_hand(module: torch.nn.Module) -> Iterator[None]:
    """While entered, the module's own weights are there, wherever they are kept."""
    if not getattr(_hook(module), "offload", False):
        yield
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield


def _devices(model: torch.nn.Module) -> list[str | int | torch.device]:
    placed: dict[str, str | int | torch.device] = getattr(model, "hf_device_map", None) or {}
    return list(dict.fromkeys(placed.values()))


def _named(device: str | int | torch.device) -> str:
    return str(torch.device(device)) if isinstance(device, int) else str(device)


def _hook(module: torch.nn.Module) -> Any:
    return getattr(module, "_hf_hook", None)
