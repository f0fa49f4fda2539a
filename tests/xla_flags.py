"""XLA flags for tests: most of the time of a small one is spent in the compiler; these halve it.

What is compiled so is slower, and rounds elsewhere; `make slow` compiles as users do.
"""


def fast_flags(devices: int = 1, fused: bool = False) -> str:
    """XLA_FLAGS for a process.

    Args:
        devices: of its CPU.
        fused: fuse as for users: takes longer, but other programs of the same products, as for
            another number of devices, round alike.
    """
    fusion = "" if fused else " --xla_cpu_use_fusion_emitters=false"
    return (
        f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
        # Splitting a program for several compiling threads costs more than it gives here.
        " --xla_cpu_parallel_codegen_split_count=1" + fusion
    )
