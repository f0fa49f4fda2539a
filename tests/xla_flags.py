"""XLA flags for tests: most of the time of a small one is spent in the compiler; these halve it.

What is compiled so is slower, and rounds elsewhere; `make slow` compiles as users do.
"""

_FAST = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def fast_flags(devices: int = 1) -> str:
    """XLA_FLAGS for a process with that many devices of its CPU."""
    return f"--xla_force_host_platform_device_count={devices} {_FAST}"
