"""Which device a name in the settings means, and what it can do. Needs no library but torch."""

from __future__ import annotations

import torch

from ttopt.errors import UserError


def find_device(name: str, setting: str) -> str:
    """The device of the setting called ``setting``; auto: a GPU if there is one. Raises UserError if it is not here."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds nothing")
        if device.type != "cuda":
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"{setting} is {name!r}, which is no device here; give auto, cpu, cuda or cuda:1") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"{setting} is {name}, but torch finds {torch.cuda.device_count()} GPUs; give cpu or auto")
    return name


def check_dtype(dtype: str, device: str, setting: str) -> None:
    """Raises UserError for numbers that the device cannot compute with."""
    cuda = torch.device(device).type == "cuda"
    if dtype == "bfloat16" and cuda and torch.cuda.get_device_capability(device) < (8, 0):
        raise UserError(f"{setting} is bfloat16, which {torch.cuda.get_device_name(device)} lacks; give float16")
