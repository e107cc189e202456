"""The command line: `jaxattn see FOLDER "text"`. `jaxattn --help` says the rest.

Commands import what they need when they run, so that help and wrong usage take no time.
Needs typer and rich: `pip install "jaxattn[cli]"`.
"""
