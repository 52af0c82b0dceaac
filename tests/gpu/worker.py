"""Runs parts whose names come on standard input, one a line; `run.py` starts it.

    python worker.py FOLDER DEVICE [--tiny]

Each result is a file in the folder, written at once. After an error of the device the process ends, because CUDA
answers nothing more in it; `run.py` then starts another.
"""

import gc
import importlib
import json
import sys
import traceback
from pathlib import Path

import torch
import transformers
from gpu.job import ERROR_TAIL, Job, write_json
from gpu.parts import PARTS


def describe(device: torch.device) -> dict:
    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "transformers": transformers.__version__}
    if device.type == "cpu":
        return {"device": "cpu", **versions}
    properties = torch.cuda.get_device_properties(device)
    versions |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return {"device": properties.name, "memory_gb": properties.total_memory / 1e9, **versions}


def run_part(name: str, job: Job) -> dict:
    """Run a part; an error is part of its result."""
    try:
        getattr(importlib.import_module(f"gpu.{PARTS[name].module}"), name)(job)
        status = "passed" if all(check["holds"] for check in job.checks) else "missed"
        return job.result() | {"status": status}
    except Exception as error:
        job.device_is_lost = isinstance(error, getattr(torch, "AcceleratorError", ()))
        return job.result() | {"status": "failed", "error": traceback.format_exc()[-ERROR_TAIL:]}


def clean(device: torch.device):
    """Leave nothing of a part to the next, neither settings nor memory."""
    gc.collect()
    torch._dynamo.reset()
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("default")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main():
    folder, device, *rest = sys.argv[1:]
    folder, device = Path(folder), torch.device(device)
    if device.type == "cuda":
        torch.zeros(1, device=device)
    # The shipped models are tiny: many threads wait for one another.
    torch.set_num_threads(min(torch.get_num_threads(), 8))
    import spa3r  # noqa: F401  # also so that each part finds it loaded

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    write_json(folder / "ready", describe(device))
    for line in sys.stdin:
        name = line.strip()
        clean(device)
        job = Job(device, "--tiny" in rest, folder / f"{name}.partial.json")
        result = run_part(name, job)
        write_json(folder / f"{name}.json", json.loads(json.dumps(result, default=str)))
        if job.device_is_lost:
            sys.exit("The device is lost.")
        del job, result


if __name__ == "__main__":
    main()
