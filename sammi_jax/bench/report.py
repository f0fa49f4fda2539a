"""Records of benchmarks: a file of them, their table, and the guard against getting slower."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sammi_jax.errors import SammiError
from sammi_jax.files import read_json, write_json
from sammi_jax.object_store import AnyPath

SLOWER = 1.2  # how many times its recorded ratio a case may have
Record = dict[str, Any]

_HEAD = """\
| case | of | ours, CPU s | torch, CPU s | ours / torch | first run, s | peak, MiB | GFLOP | \
matrix rate | error |
|---|---|---|---|---|---|---|---|---|---|"""


def key_of(record: Mapping[str, Any]) -> str:
    """What names a record in a file."""
    return f"{record['case']}/{record['count']}/{record['size']}"


def read_records(path: AnyPath) -> dict[str, Record]:
    """The records of a file, by `key_of`.

    Raises:
        SammiError: not a file that `write_records` wrote.
    """
    records = read_json(path).get("records")
    if not isinstance(records, list) or not all(
        isinstance(record, dict) and {"case", "count", "size", "ratio"} <= record.keys()
        for record in records
    ):
        raise SammiError(f"{path}: holds no records; make them with: sammi bench NAME --out FILE")
    return {key_of(record): record for record in records}


def write_records(path: AnyPath, records: Iterable[Record]) -> None:
    """Write records; those of a file that is there stay, unless they are of the same case."""
    old = read_records(path) if path.exists() else {}
    merged = old | {key_of(record): record for record in records}
    write_json(path, {"records": list(merged.values())})


def slower(records: Iterable[Record], against: Mapping[str, Record]) -> list[str]:
    """One line for each record whose ratio is more than 1.2 times the recorded one.

    Raises:
        SammiError: a case is not among the recorded ones.
    """
    lines = []
    for record in records:
        key = key_of(record)
        if key not in against:
            raise SammiError(
                f"{key}: not among the recorded cases ({', '.join(sorted(against))}); add it with "
                "--out"
            )
        limit = SLOWER * against[key]["ratio"]
        if record["ratio"] > limit:
            lines.append(
                f"{key}: {record['ratio']:.2f} of torch's CPU seconds, recorded "
                f"{against[key]['ratio']:.2f}: more than {SLOWER} times that"
            )
    return lines


def table(records: Sequence[Record]) -> str:
    """The records as Markdown."""
    return "\n".join([_HEAD, *map(_row, records)])


def _row(record: Record) -> str:
    ours, peer = record["sides"]["ours"], record["sides"]["peer"]
    flops, share = "-", "-"
    if record["flops"] is not None:
        flops, share = f"{record['flops'] / 1e9:,.1f}", f"{100 * record['matmul_share']:.0f}%"
    cells = (
        f"`{record['case']}`",
        f"{record['count']} {record['unit']}",
        _seconds(ours),
        _seconds(peer),
        f"{record['ratio']:.2f}",
        f"{ours['cold_wall_s']:.1f}, {peer['cold_wall_s']:.1f}",
        f"{ours['peak_mib']:,.0f}, {peer['peak_mib']:,.0f}",
        flops,
        share,
        f"{record['error']:.0e}",
    )
    return f"| {' | '.join(cells)} |"


def _seconds(side: Mapping[str, float]) -> str:
    return f"{side['cpu_s']:.3g} ({side['cpu_low_s']:.3g} to {side['cpu_high_s']:.3g})"


def conditions(record: Record) -> str:
    """One line on where and with what a record was measured."""
    machine, versions = record["machine"], record["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{record['date']}, one core of {machine['cores']} ({machine['cpu']}), load "
        f"{machine['load']:.1f}; {packages}; a matrix product runs at "
        f"{record['matmul_rate'] / 1e9:.0f} GFLOP a CPU second"
    )
