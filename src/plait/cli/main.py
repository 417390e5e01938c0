"""The entry point: one Typer application, one place that turns errors into exit codes.

Exit codes: 0 ok; 1 the result is wrong or below a stated bar; 2 usage; 3 unsupported op or shape;
4 compile failure; 5 artifact, target or version mismatch; 6 environment; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from importlib import import_module
from typing import Annotated

import typer

from plait import __version__
from plait.cli import output
from plait.ir import knobs, logs
from plait.ir.errors import EnvironmentProblem, PlaitError, UsageError

INTERNAL_ERROR = 4
INTERRUPTED = 130

# The verbs in the order `plait --help` lists them: module and the name of its command function.
COMMANDS: list[tuple[str, str]] = [
    ("plait.cli.doctor", "doctor"),
    ("plait.cli.explain", "explain"),
    ("plait.cli.compile", "compile"),
    ("plait.cli.run", "run"),
    ("plait.cli.bench", "bench"),
    ("plait.cli.tune", "tune"),
    ("plait.cli.profile", "profile"),
    ("plait.cli.inspect", "inspect"),
]
# Verbs with verbs of their own: name, module and the name of its Typer application.
GROUPS: list[tuple[str, str, str]] = [
    ("cache", "plait.cli.cache", "app"),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"plait {__version__}")
        raise typer.Exit


def _callback(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Weave PyTorch graphs into a few fused kernels."""
    logs.configure()
    if not knobs.DEBUG.get():
        # Libraries warn their callers; a user of the command line can do nothing about it.
        warnings.simplefilter("ignore")


def build_app() -> typer.Typer:
    """The application with all verbs; their modules import no large library."""
    app = typer.Typer(
        name="plait",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_callback)
    for module, name in COMMANDS:
        app.command(name)(getattr(import_module(module), name))
    for name, module, attribute in GROUPS:
        app.add_typer(getattr(import_module(module), attribute), name=name)
    return app


def _as_plait_error(error: Exception) -> PlaitError | None:
    """The catalogue's error for an exception of Python that has a plain meaning to a user."""
    if isinstance(error, PlaitError):
        return error
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        if package != "plait":
            hint = "it is not installed here: pip install 'plait[compile]'"
            return EnvironmentProblem(what=f"the Python package {package!r}", message=hint)
    if isinstance(error, OSError) and error.filename is not None:
        return UsageError(f"{error.filename}: {(error.strerror or str(error)).lower()}")
    return None


def _report_failure(error: Exception) -> int:
    """Print one sentence (and the traceback under `PLAIT_DEBUG`); give the exit code."""
    known = _as_plait_error(error)
    code = known.exit_code if known else INTERNAL_ERROR
    if os.environ.get(knobs.DEBUG.name, "0") not in ("", "0"):
        traceback.print_exception(error)
    message = str(known) if known else f"internal error: {type(error).__name__}: {error}"
    if known is None:
        message += f" (a bug in Plait; {knobs.DEBUG.name}=1 shows where)"
    output.fail(message, kind=type(known or error).__name__, exit_code=code)
    return code


def _interrupted() -> int:
    output.fail("interrupted", kind="Interrupted", exit_code=INTERRUPTED)
    return INTERRUPTED


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; never raises."""
    argv = sys.argv[1:] if arguments is None else arguments
    output.set_json_mode("--json" in argv)
    try:
        result = build_app()(argv, prog_name="plait", standalone_mode=False)
        sys.stdout.flush()
        # Typer answers Ctrl-C by returning the code without a word.
        return _interrupted() if result == INTERRUPTED else result or 0
    except (typer.Abort, KeyboardInterrupt):
        return _interrupted()
    except typer.TyperException as error:
        usage = getattr(error, "ctx", None)
        hint = f" (see {usage.command_path} --help)" if usage else ""
        message = str(error.format_message())
        output.fail(message.rstrip(".") + hint, kind="UsageError", exit_code=UsageError.exit_code)
        return UsageError.exit_code
    except BrokenPipeError:
        # The reader of a pipe has gone: not an error, and nothing may be flushed into it any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _report_failure(error)


if __name__ == "__main__":
    sys.exit(main())
