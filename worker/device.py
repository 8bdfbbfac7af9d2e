"""Chooses where the model runs and in which numbers, and says why."""

from __future__ import annotations

import platform

import torch

from personas.errors import SettingsError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}
# Instructions that multiply bytes; without them int8 is slower than float32.
INT8_FEATURES = ("amx_int8", "avx512_vnni", "avx_vnni")


def choose_device(asked: str = "auto") -> tuple[torch.device, str]:
    """Return the device and the reason; refuse one that is not there."""
    if asked == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), f"found {torch.cuda.get_device_name()}"
        return torch.device("cpu"), "no GPU that torch can use"
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise SettingsError(f"device: {asked!r} is none; known are auto, cpu, cuda, cuda:1 and so on, mps.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"device: {asked} was asked for, but torch {torch.__version__} sees {torch.cuda.device_count()} such "
            "devices. Check `nvidia-smi`, install a CUDA build of torch, or use --device auto."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SettingsError("device: mps was asked for, but this is no Apple GPU. Use --device auto.")
    return device, "asked for"


def choose_dtype(device: torch.device, asked: str = "auto") -> tuple[torch.dtype, str]:
    """Return the number format and the reason: 16 bits where the hardware computes with them, else float32."""
    if asked == "int8":
        _check_int8(device)
    if asked != "auto":
        return DTYPES[asked], "asked for"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "this GPU computes with it"
        return torch.float16, "this GPU has no bfloat16"
    if device.type == "mps":
        return torch.float16, "half the memory traffic on an Apple GPU"
    native = next((name for name in ("amx_bf16", "avx512_bf16", "bf16") if cpu_features().get(name)), None)
    if native:
        return torch.bfloat16, f"this CPU computes with it ({native})"
    return torch.float32, f"this CPU ({platform.machine()}) has no bfloat16 instructions"


def stored_dtype(dtype: torch.dtype) -> torch.dtype:
    """The format to load weights in: what is to be packed as int8 comes as float32."""
    return torch.float32 if dtype is torch.int8 else dtype


def _check_int8(device: torch.device) -> None:
    if device.type != "cpu":
        raise SettingsError(f"dtype: int8 is for CPUs, and the device is {device}. Use --dtype auto, or --device cpu.")
    if not any(cpu_features().get(name) for name in INT8_FEATURES):
        raise SettingsError(
            f"dtype: int8 was asked for, but this CPU ({platform.machine()}) has none of {', '.join(INT8_FEATURES)}. "
            "Use --dtype auto."
        )


def cpu_features() -> dict[str, bool | int | str]:
    """What torch knows of this CPU."""
    return dict(torch.cpu.get_capabilities())
