"""The gate of every port: relative L2 distance in float32."""

import numpy as np

RECORDS: dict[str, tuple[float, float]] = {}


def errors(ours, reference) -> tuple[float, float]:
    """Relative L2 and largest absolute difference; shapes must be equal."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert ours.shape == reference.shape, f"shape {ours.shape} is not {reference.shape}"
    difference = np.abs(ours - reference)
    assert np.isfinite(difference).all(), "not finite"
    return float(np.linalg.norm(difference) / max(np.linalg.norm(reference), 1e-30)), float(
        difference.max(initial=0.0)
    )


def assert_parity(ours, reference, rel_l2: float = 1e-5, name: str = "") -> None:
    """Assert that ``ours`` equals ``reference`` to ``rel_l2``, and record both errors."""
    relative, absolute = errors(ours, reference)
    RECORDS[name] = (relative, absolute)
    print(f"parity {name}: rel_l2 {relative:.2e} max_abs {absolute:.2e}")
    assert relative <= rel_l2, (
        f"{name}: rel_l2 {relative:.3e} > {rel_l2:.0e} (max abs {absolute:.3e})"
    )
