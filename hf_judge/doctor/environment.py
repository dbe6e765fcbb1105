"""Checks what is installed, and what the machine has."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import torch
from packaging.requirements import Requirement
from packaging.version import Version

from hf_judge.doctor.findings import Diagnosis
from hf_judge.upstream.peft.installed import asked_for_by_transformers

PACKAGES = ("torch", "transformers", "peft", "accelerate", "huggingface-hub", "safetensors")


def check_versions(found: Diagnosis) -> None:
    """Compare what is installed with what was tested, and note the version of each package and of Python."""
    found.versions = {"python": platform.python_version(), "hf-judge": importlib.metadata.version("hf-judge")}
    requirements = map(Requirement, importlib.metadata.requires("hf-judge") or ())
    ranges = {r.name: r.specifier for r in requirements if r.marker is None}
    for package in PACKAGES:
        install = f"pip install '{package}{ranges[package]}'"
        try:
            version = found.versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found.problem(package, f"{package} is not installed", install)
            continue
        release = Version(Version(version).base_version)
        if package == "peft" and release < asked_for_by_transformers():
            found.warn(
                "adapters",
                f"transformers' adapter methods require peft {asked_for_by_transformers()}, not {release}",
                "add_adapter() on a model without a judge needs that peft; PeftModel and judge= work as it is",
            )
        if release in ranges[package]:
            found.ok(package, f"{package} {version} (tested: {ranges[package]})")
        else:
            found.warn(
                package,
                f"{package} {version} is not among the tested versions ({ranges[package]})",
                f"trust it as far as the self-check below goes, or {install}",
            )


def check_devices(found: Diagnosis) -> None:
    """Name the devices and their memory."""
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            name = torch.cuda.get_device_name(i)
            found.ok(f"cuda:{i}", f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    elif torch.accelerator.is_available():
        found.ok("accelerator", str(torch.accelerator.current_accelerator()))
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if "SC_AVPHYS_PAGES" in os.sysconf_names else None
    memory = "" if free is None else f", {free / 2**30:.1f} GiB of memory free"
    found.ok("cpu", f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads{memory}")
