"""The device that a command computes on."""

import torch


def usable_device(name: str | None) -> torch.device:
    """The named device; by default an accelerator if there is one.

    Raises:
        ValueError: If there is no such device, or torch was built without support for it.
    """
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    # The error depends on how torch was built, and may be pages long.
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"The device `{name}` is missing, or torch was built without support for it: leave out --device, or give "
            "cpu."
        ) from error
