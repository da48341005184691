"""What this machine's processor is called, and what it can do."""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["processor", "processor_name"]


def processor_name() -> str:
    """Return what this machine's processor is called."""
    return _processor_fields().get("model name") or platform.processor() or platform.machine()


def processor() -> str:
    """Return what tells this machine's processor from others: its name and, where known, its instruction sets."""
    fields = _processor_fields()
    return f"{platform.machine()} {processor_name()} {fields.get('flags') or fields.get('Features', '')}"


def _processor_fields() -> dict[str, str]:
    """Return what Linux says of the first processor, nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return dict(reversed([(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]))
