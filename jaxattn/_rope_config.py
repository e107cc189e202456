"""Rotary embeddings as the config of a model in Hugging Face's transformers states them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxattn._rope_scaling import DynamicNTK, Linear, Llama3, LongRoPE, Scaling, YaRN

EVERY = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"}
ORIGINAL = "original_max_position_embeddings"


class Stated(NamedTuple):
    """A config, and the mapping in it that is about positions."""

    config: Mapping[str, Any]
    rope: Mapping[str, Any]

    def needed(self, name: str) -> Any:
        if self.rope.get(name) is None:
            raise ValueError(
                f"rope_type {self.kind!r} needs {name!r}, got {dict(self.rope)}; add it to "
                f"rope_parameters"
            )
        return self.rope[name]

    def first(self, *names: str) -> Any:
        """Of the names, in the mapping first and then beside it; None if there is none."""
        found = (of.get(name) for of in (self.rope, self.config) for name in names)
        return next((x for x in found if x is not None), None)

    def beside(self, name: str) -> Any:
        if self.config.get(name) is None:
            raise ValueError(
                f"rope_type {self.kind!r} needs {name!r} beside rope_parameters, got a config with "
                f"{sorted(self.config)}; add it"
            )
        return self.config[name]

    @property
    def kind(self) -> str:
        return self.rope.get("rope_type") or self.rope.get("type") or "default"

    @property
    def original(self) -> int:
        """That beside the mapping comes before that within, as in transformers."""
        stated = self.config.get(ORIGINAL) or self.rope.get(ORIGINAL)
        return stated or self.beside("max_position_embeddings")

    @property
    def factor(self) -> float:
        """Of a type that may leave it to the two lengths."""
        return self.rope.get("factor") or self.beside("max_position_embeddings") / self.original


def read(config: Mapping[str, Any]) -> tuple[int, float, Scaling | None]:
    """rotary_dim, theta and scaling.

    Raises:
      TypeError, ValueError: as `Rope.from_config`.
    """
    if not isinstance(config, Mapping):
        raise TypeError(
            f"a config is a mapping, got {type(config).__name__}; pass config.to_dict(), or what "
            f"json.load makes of config.json"
        )
    stated = Stated(config, config.get("rope_parameters") or config.get("rope_scaling") or {})
    if not isinstance(stated.rope, Mapping) or any(
        isinstance(x, Mapping) for x in stated.rope.values()
    ):
        raise ValueError(
            f"rope_parameters holds the numbers of one kind of layer, got {stated.rope!r}; make a "
            f"Rope for each kind: from_config({{**config, 'rope_parameters': "
            f"config['rope_parameters'][kind]}})"
        )
    several = {k for k, x in config.items() if x and ("rope_theta" in k or "base_freq" in k)}
    if several - {"rope_theta"}:
        raise ValueError(
            f"a config states one theta, 'rope_theta', got {sorted(several)}; make a Rope for each "
            f"kind of layer, of a config with the theta of that kind"
        )
    if stated.kind not in TYPES:
        raise ValueError(
            f"rope_type is one of {', '.join(map(repr, TYPES))}, got {stated.kind!r}; for another "
            f"write a Scaling and pass Rope(rotary_dim, theta, layout, scaling)"
        )
    keys, make = TYPES[stated.kind]
    unknown = sorted({k for k, x in stated.rope.items() if x is not None} - EVERY - keys)
    if unknown:
        raise ValueError(
            f"rope_type {stated.kind!r} reads {sorted(keys)} from rope_parameters, got {unknown} "
            f"too; remove those that change nothing, else write a Scaling of your own"
        )
    return (
        _rotary_dim(stated),
        stated.first("rope_theta", "rotary_emb_base") or 10000.0,
        make(stated),
    )


def _rotary_dim(stated: Stated) -> int:
    if stated.config.get("rotary_dim"):
        return stated.config["rotary_dim"]
    size = stated.config.get("qk_rope_head_dim") or stated.config.get("head_dim")
    if size is None:
        width = stated.config.get("hidden_size") or stated.config.get("n_embd")
        heads = stated.config.get("num_attention_heads") or stated.config.get("n_head")
        if width is None or heads is None:
            raise ValueError(
                f"the size of a head is 'head_dim', or 'hidden_size' and 'num_attention_heads', "
                f"got a config with {sorted(stated.config)}; add one, or pass Rope(rotary_dim)"
            )
        size = width // heads
    share = stated.first("partial_rotary_factor", "rotary_pct")
    return int(size * (1.0 if share is None else share))


def _yarn(stated: Stated) -> YaRN:
    read = stated.rope.get
    return YaRN(
        stated.factor,
        stated.original,
        beta_fast=read("beta_fast") or 32.0,
        beta_slow=read("beta_slow") or 1.0,
        attention_factor=read("attention_factor"),
        mscale=read("mscale"),
        mscale_all_dim=read("mscale_all_dim"),
        truncate=read("truncate") is not False,
    )


def _llama3(stated: Stated) -> Llama3:
    low, high = stated.needed("low_freq_factor"), stated.needed("high_freq_factor")
    return Llama3(stated.needed("factor"), low, high, stated.original)


def _longrope(stated: Stated) -> LongRoPE:
    short, long = stated.needed("short_factor"), stated.needed("long_factor")
    own = stated.rope.get("attention_factor")
    return LongRoPE(stated.factor, tuple(short), tuple(long), stated.original, own)


Make = Callable[[Stated], Scaling | None]
LONGROPE = ({"factor", "short_factor", "long_factor", "attention_factor", ORIGINAL}, _longrope)

# rope_type: the keys that it reads, and the scaling made of them.
TYPES: dict[str, tuple[set[str], Make]] = {
    "default": (set(), lambda _: None),
    "linear": ({"factor"}, lambda x: Linear(x.needed("factor"))),
    "dynamic": (
        {"factor"},
        lambda x: DynamicNTK(x.needed("factor"), x.beside("max_position_embeddings")),
    ),
    "yarn": (
        {"factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"}
        | {"truncate", ORIGINAL},
        _yarn,
    ),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor", ORIGINAL}, _llama3),
    "longrope": LONGROPE,
    "su": LONGROPE,
}
