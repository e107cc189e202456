"""`jaxattn generate`: text after a prompt, as it is made."""

from typing import Annotated

import typer

from jaxattn.cli import checkpoint, terminal, texts

EPILOG = """\b
Examples:
  jaxattn generate path/to/gpt2 "Once upon a time"
  jaxattn generate path/to/gpt2 "Once upon a time" --temperature 0.8 --top-p 0.95 --seed 1
  echo "Once upon a time" | jaxattn generate path/to/gpt2"""


def generate(
    folder: checkpoint.Folder,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="Standard input if it is left out.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    temperature: Annotated[
        float, typer.Option(min=0, help="Of the softmax; 0 takes the most likely token.")
    ] = 0.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Of so many tokens only.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Of the likeliest tokens with this probability together.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
) -> None:
    """Writes on after a prompt, token by token.

    Top-k, top-p and the seed count where the temperature is above 0.
    """
    text = texts.read(prompt, None, "PROMPT")
    with terminal.waiting("Reading the checkpoint"):
        import jax

        from jaxattn import models

        sampling = models.Sampling(temperature, top_k, top_p)
        _, path, model, tokenizer = checkpoint.load(folder)
    stop = checkpoint.ends(path)
    ids = tokenizer.encode(text).ids
    while len(ids) > 1 and ids[-1] in stop:
        ids = ids[:-1]  # some tokenizers end every text
    key = jax.random.key(seed) if temperature > 0 else None
    made = models.generate(model, ids, most=tokens, sampling=sampling, key=key, stop=stop)
    stream = tokenizer.stream(ids)
    typer.echo(text, nl=False)
    for id in made:
        typer.echo(stream(int(id)), nl=False)
    typer.echo(stream.end())
