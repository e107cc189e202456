"""`python -m jaxattn` is the command `jaxattn`."""

from jaxattn.cli.start import main

if __name__ == "__main__":
    main()
