"""Time as it is on an accelerator, which goes on after a call has returned."""

import time

import torch


def now(device: torch.device) -> float:
    """Seconds of a clock that only runs forward, once all that was begun on the device is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
