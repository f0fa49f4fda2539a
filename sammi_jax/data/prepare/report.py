"""The result of `sammi_jax.data.prepare.doctor.examine` as text."""

from collections.abc import Sequence

from sammi_jax.data.prepare.doctor import Report, agrees
from sammi_jax.errors import listed


def report_lines(report: Report, titles: Sequence[str], published: float | None) -> list[str]:
    """What `sammi datasets` prints.

    Args:
        report: of `examine`.
        titles: a name for each class.
        published: random mIoU in percent that MESS publishes for the set; None: it does not.
    """
    total = int(report.pixels.sum())
    everything = max(total + report.ignored, 1)
    lines = [f"  {report.images:,} images, {100 * report.ignored / everything:.1f} % ignored"]
    if report.sizes_differ:
        lines.append(
            f"  WRONG: {len(report.sizes_differ)} labels of another size than their image: "
            + listed(report.sizes_differ)
        )
    if report.outside:
        found = [f"{value} ({count:,} pixels)" for value, count in sorted(report.outside.items())]
        lines.append(f"  WRONG: values that are no class: {listed(found)}")
    if report.is_mask:
        lines.append(
            "  WRONG: the labels hold class 0 and the ignored value alone, as masks of 0 and 255 "
            "do: write 1 where they have 255"
        )
    if len(titles) == 1:
        lines.append(
            "  WRONG: with one class every prediction is right; name a class for the other pixels, "
            "such as background"
        )
    if report.absent:
        names = [titles[index] for index in report.absent]
        lines.append(f"  {len(names)} of {len(titles)} classes never occur: {listed(names)}")
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
