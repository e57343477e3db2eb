"""The machine and the versions that a run's figures belong to."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

_PACKAGES = (
    "cellcache",
    "dogpile.cache",
    "pymemcache",
    "SQLAlchemy",
    "PyMySQL",
    "redis",
    "pylibmc",
    "oslo.cache",
    "meta-memcache",
    "cachetools",
)
_SERVERS = {"memcached": ["memcached", "-V"], "Redis": ["redis-server", "--version"], "MariaDB": ["mariadbd", "-V"]}


def machine() -> dict[str, str]:
    """Describe the machine; nothing in it names its owner or its files."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "load before the run": f"{os.getloadavg()[0]:.1f}",
    }


def versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    for name, command in _SERVERS.items():
        found[name] = _server_version(command)
    return found


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _server_version(command: list[str]) -> str:
    environment = os.environ | {"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    except FileNotFoundError:
        return "not installed"
    words = done.stdout.replace("v=", "").replace("Ver", "").split()
    return next((word.partition("-")[0] for word in words if word[:1].isdigit()), "unknown")
