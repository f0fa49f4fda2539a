"""The doctor's report as text."""

from collections.abc import Sequence

from sammi_jax.data.prepare.doctor import Report, agrees

_MAX_LISTED = 8


def report_lines(report: Report, titles: Sequence[str], published: float | None) -> list[str]:
    """What `sammi datasets` prints.

    Args:
        report: of `examine`.
        titles: a name for each class.
        published: random mIoU in percent that MESS gives for the set, if it does.
    """
    total = int(report.pixels.sum())
    everything = max(total + report.ignored, 1)
    lines = [f"  {report.images:,} images, {100 * report.ignored / everything:.1f} % ignored"]
    if report.sizes_differ:
        lines.append(
            f"  WRONG: {len(report.sizes_differ)} labels of another size than their image: "
            + _listed(report.sizes_differ)
        )
    if report.outside:
        found = [f"{value} ({count:,} pixels)" for value, count in sorted(report.outside.items())]
        lines.append(f"  WRONG: values that are no class: {_listed(found)}")
    if report.absent:
        names = [titles[index] for index in report.absent]
        lines.append(f"  {len(names)} of {len(titles)} classes never occur: {_listed(names)}")
    lines.append(random_line(report.random_miou, published))
    lines.append(f"  {'class':32}{'pixels':>16}{'share':>9}{'images':>9}")
    for index, title in enumerate(titles):
        count = int(report.pixels[index])
        share = f"{100 * count / max(total, 1):.2f} %"
        lines.append(f"  {title[:31]:32}{count:>16,}{share:>9}{report.images_with[index]:>9,}")
    return lines


def random_line(found: float, published: float | None) -> str:
    """The score of a random guess, next to the published one."""
    line = f"  random guess: mIoU {found:.2f}"
    if published is None:
        return line
    if agrees(found, published):
        return f"{line}, as MESS publishes"
    return (
        f"{line}, MESS publishes {published:.2f}: with the whole set, another number means other "
        "labels"
    )


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - _MAX_LISTED} more" if len(items) > _MAX_LISTED else ""
    return ", ".join(items[:_MAX_LISTED]) + more
