"""Runs scenarios of hub_scenarios.py against a loopback Hub, in a process of its own.

hub_worker.py <folder> [<scenario> ...]

The client reads its endpoint and caches when it is imported, so they are set here before anything imports it.
Prints one JSON line per scenario: its name and its traceback, or null.
"""

import json
import os
import sys
import time
import traceback
from pathlib import Path

from loopback_hub import LoopbackHub, User

USERS = {
    "hf_alice": ("alice", "write"),
    "hf_alice_read": ("alice", "read"),
    "hf_bob": ("bob", "write"),
}


def main(folder: Path, names: list[str]) -> None:
    hub = LoopbackHub({token: User(*user) for token, user in USERS.items()})
    os.environ |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_alice",
    }
    from hub_scenarios import SCENARIOS, World

    with hub:
        world = World(hub, folder)
        for name in names or SCENARIOS:
            hub.fault, hub.lfs, error = None, True, None
            hub.log.clear()
            start = time.monotonic()
            try:
                SCENARIOS[name](world, f"alice/{name.replace('_', '-')}")
            except BaseException:  # noqa: BLE001 - reported to the test of this name
                error = traceback.format_exc() + "".join(f"{request}\n" for request in hub.log[-12:])
            print("SCENARIO", json.dumps([name, error]), flush=True)
            print(f"{name}: {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
