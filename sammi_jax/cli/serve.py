"""`sammi serve`: a model as a web page and a JSON API."""

import argparse
import sys

from sammi_jax.cli.options import add_model_argument, chosen_model
from sammi_jax.errors import SammiError

_DESCRIPTION = """\
Serve a model on this machine: a web page for people, a JSON API for programs.
  /             the page: drop an image, type class names, see and download the result
  /api/segment  POST an image and class names       /api/health   what the server is
  /api/masks    POST an image and points or boxes   /api/metrics  counts for Prometheus
Without --model it serves the small bundled model. Ctrl-C ends it."""

_EXAMPLE = """\
examples:
  sammi serve
  sammi serve --model weights/sammi --port 8000
  curl -F image=@photo.jpg -F classes="sky, tree, dog" http://127.0.0.1:7860/api/segment"""

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "serve",
        help="a model as a web page and a JSON API",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_argument(parser, "a CAT-Seg or SAM-MI model folder")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="to listen at; 0.0.0.0 lets other machines in; default: 127.0.0.1, this machine only",
    )
    parser.add_argument(
        "--port", type=int, default=7860, metavar="N", help="0: any free one; default: 7860"
    )
    parser.add_argument(
        "--root-path",
        default="",
        metavar="/PATH",
        help="where a proxy puts the server, if not at the root, such as /sammi",
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-upload-mb", type=float, default=20.0, metavar="MB", help="of an image; default: 20"
    )
    limits.add_argument(
        "--max-megapixels", type=float, default=25.0, metavar="MP", help="of an image; default: 25"
    )
    limits.add_argument(
        "--max-classes",
        type=int,
        default=200,
        metavar="N",
        help="of a list, synonyms counted; default: 200",
    )
    limits.add_argument(
        "--queue",
        type=int,
        default=8,
        metavar="N",
        help="requests that may wait while one is in work; more are turned away; default: 8",
    )
    limits.add_argument(
        "--timeout",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="for waiting, and for the work itself; default: 120",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    import tempfile
    from pathlib import Path

    from sammi_jax.config.extras import EXTRAS  # it imports jax

    if EXTRAS["serve"].installed is None:
        raise SammiError(f"sammi serve needs the package gradio: {EXTRAS['serve'].command}")
    _check(args)
    if args.host not in _LOOPBACK:
        print(
            f"sammi: warning: --host {args.host}: other machines can use this server, and nobody "
            "is asked for a password; put a proxy with a login before it (docs/serve.md)",
            file=sys.stderr,
        )
    from sammi_jax.inference.segmenter import load
    from sammi_jax.serve import app
    from sammi_jax.serve.limits import Limits
    from sammi_jax.serve.service import Service, model_name
    from sammi_jax.weights.bundled import DEFAULT, find_model

    limits = Limits(
        upload_bytes=int(args.max_upload_mb * 1e6),
        pixels=int(args.max_megapixels * 1e6),
        classes=args.max_classes,
        queue=args.queue,
        seconds=args.timeout,
    )
    listening = app.listen(args.host, args.port)
    with listening, tempfile.TemporaryDirectory(prefix="sammi_serve_") as folder:
        model = chosen_model(args)
        bundled = find_model(model) == find_model(DEFAULT)
        service = Service(load(model), model_name(model), limits, bundled)
        print("sammi: compiling the model's programs", file=sys.stderr, flush=True)
        service.warm_up()
        host = f"[{args.host}]" if ":" in args.host else args.host
        port = listening.getsockname()[1]
        server = app.make_app(service, Path(folder).resolve(), args.root_path)
        print(f"http://{host}:{port}{args.root_path}/ (Ctrl-C ends it)", flush=True)
        try:
            app.run(server, listening, args.root_path)
        finally:
            service.worker.close()
    return 0


def _check(args: argparse.Namespace) -> None:
    for name in ("max_upload_mb", "max_megapixels", "max_classes", "timeout"):
        if not 0 < getattr(args, name) < float("inf"):
            raise SammiError(
                f"--{name.replace('_', '-')} {getattr(args, name)}: give a number above 0"
            )
    if args.queue < 0:
        raise SammiError(f"--queue {args.queue}: give 0 or more")
    if not 0 <= args.port < 2**16:
        raise SammiError(f"--port {args.port}: give a number from 0 to 65535")
    if args.root_path and (not args.root_path.startswith("/") or args.root_path.endswith("/")):
        raise SammiError(f"--root-path {args.root_path}: begin with a slash, and end without one")
