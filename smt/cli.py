"""The `smt` command. Commands load on first use, so that `smt --help` needs no torch."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import click
from click.exceptions import NoArgsIsHelpError

from smt import __version__, forkserver
from smt.errors import UserError, missing_package, suggest

COMMANDS: dict[str, tuple[str, str]] = {
    # name: (module, one-line help); the module has a click command `command`
    "check": ("smt.commands.check", "Validate params/ and print what each experiment trains."),
    "data": ("smt.commands.data", "Make demo data; check a data set, write its manifest, pack it."),
    "train": ("smt.commands.train", "Train one run, or resume it."),
    "evaluate": ("smt.commands.evaluate", "Evaluate a run's weights, or released ones, anew."),
    "checkpoint": ("smt.commands.checkpoint", "Show the content of a checkpoint, and verify it."),
    "prove": ("smt.commands.prove", "Kill trainings at random; show that they end the same."),
    "profile": ("smt.commands.profile", "Parameters and MACs of every model."),
    "doctor": ("smt.commands.doctor", "Check what a launch on the cluster needs."),
    "rehearse": ("smt.commands.rehearse", "Training steps at full size on a fake GPU."),
    "plan": ("smt.commands.plan", "GPU-hours, wall time and requeues before a launch."),
    "status": ("smt.commands.status", "The state of every run, and why it is not done."),
    "look": ("smt.commands.look", "Pictures of what a classifier computes, as in the paper."),
    "export": ("smt.commands.export", "Export a classifier for torch.export or ONNX."),
    "convert": ("smt.commands.convert", "Convert weights from and to the released naming."),
    "sync": ("smt.commands.sync", "Send journals to MLflow: only what is new."),
    "tables": ("smt.commands.tables", "Make the paper's tables again, without torch."),
    "figures": ("smt.commands.figures", "Plot learning curves and accuracy against MACs."),
    "report": ("smt.commands.report", "One page with tables, curves, failures and provenance."),
    "dvc": ("smt.commands.dvc", "Record what was made in DVC; bring it back from there."),
    "verify": ("smt.commands.verify", "Is every printed number consistent with its run?"),
    "audit": ("smt.commands.audit", "Train parts of a run again; compare them byte for byte."),
    "why": ("smt.commands.why", "Trace a table's row to its runs, code, params, data, parents."),
    "release": ("smt.commands.release", "Pack final weights, model cards and results to publish."),
    "ui": ("smt.commands.ui", "Open the MLflow UI on this project's runs."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS:
            raise UserError(f"smt: no command {args[0]!r}; {suggest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="smt")
@click.option("--params", type=click.Path(path_type=Path), help="Folder of params [./params].")
@click.option("--results", type=click.Path(path_type=Path), help="Folder of results [./results].")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of data sets [./data].")
def cli(params: Path | None, results: Path | None, data: Path | None) -> None:
    """Reproduce "Scale-Aware Modulation Meet Transformer" (ICCV 2023).

    Exit codes: 0 done; 2 bad input; 3 data missing or unreadable; 4 training failed;
    5 a recorded value is inconsistent with its source (smt verify, smt audit); 6 not comparable on
    this machine (smt audit); 75 stopped on request with its
    state saved (run the same command again to resume).
    """
    for variable, value in (("SMT_PARAMS", params), ("SMT_RESULTS", results), ("SMT_DATA", data)):
        if value is not None:
            os.environ[variable] = str(value)


def _run() -> Any:
    try:
        return cli(prog_name="smt", standalone_mode=False)
    except ImportError as error:
        if (missing := missing_package(error)) is None:
            raise
        raise missing from None


def _one_line(error: click.ClickException) -> str:
    """Return click's own message, such as that of an option's value, and where help is."""
    message = " ".join(error.format_message().split()).removesuffix(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    return message if context is None else f"{message} ({context.command_path} --help)"


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and an exit code."""
    code = forkserver.run(sys.argv[1:])
    if code is not None:
        sys.exit(code)
    try:
        # What a command returns is None; what click itself ends with (--help) is its exit code.
        sys.exit(_run())
    except UserError as error:
        click.echo(f"smt: error: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        if isinstance(error, NoArgsIsHelpError):
            error.show()
        else:
            click.echo(f"smt: error: {_one_line(error)}", err=True)
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("smt: stopped", err=True)
        sys.exit(130)
