"""One layer of a model: attention and an MLP, each added to what it read."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from jaxattn import cache as kv
from jaxattn.models.attention import Attention, Observe, Steps, Turn
from jaxattn.models.layers import MLP, GatedMLP, Norm


class Layer(nnx.Module):
    """What all layers do. A family's own says where its norms are, by `read` and `join`."""

    attention: Attention

    def read(self, x: Float[Array, "*b t m"]) -> Float[Array, "*b t m"]:
        """What attention reads of the hidden states."""
        raise NotImplementedError(f"{type(self).__name__}.read")

    def join(
        self, x: Float[Array, "*b t m"], attended: Float[Array, "*b t m"]
    ) -> Float[Array, "*b t m"]:
        """The hidden states after the layer, from those before it and what attention made."""
        raise NotImplementedError(f"{type(self).__name__}.join")

    def __call__(
        self, x: Float[Array, "*b t m"], turn: Turn | None, valid: Any, observe: Observe | None
    ) -> tuple[Float[Array, "*b t m"], dict[str, Any]]:
        attended, observed = self.attention(self.read(x), turn, valid, observe)
        return self.join(x, attended), observed

    def decode(
        self,
        x: Float[Array, "*b t m"],
        turn: Turn | None,
        cache: kv.Cache,
        count: Any,
        observe: Observe | None,
    ) -> tuple[Float[Array, "*b t m"], dict[str, Any], kv.Cache]:
        attended, observed, cache = self.attention.decode(self.read(x), turn, cache, count, observe)
        return self.join(x, attended), observed, cache

    def steps(self, x: Float[Array, "*b t m"], turn: Turn | None, valid: Any) -> Steps:
        return self.attention.steps(x, self.read(x), turn, valid)


class Block(Layer):
    """x + attention(norm x), then x + mlp(norm x); or both read the same x (parallel).

    after_attention, after_mlp: norms of what is added, as Gemma has them.
    Source: Xiong et al. 2020; parallel: Black et al. 2022.
    """

    def __init__(
        self,
        attention: Attention,
        mlp: nnx.Module,
        *,
        before_attention: Norm,
        before_mlp: Norm,
        after_attention: Norm | None = None,
        after_mlp: Norm | None = None,
        parallel: bool = False,
    ) -> None:
        self.attention, self.mlp, self.parallel = attention, mlp, parallel
        self.before_attention, self.before_mlp = before_attention, before_mlp
        self.after_attention, self.after_mlp = nnx.data(after_attention), nnx.data(after_mlp)

    def read(self, x: Float[Array, "*b t m"]) -> Float[Array, "*b t m"]:
        return self.before_attention(x)

    def join(
        self, x: Float[Array, "*b t m"], attended: Float[Array, "*b t m"]
    ) -> Float[Array, "*b t m"]:
        attended = attended if self.after_attention is None else self.after_attention(attended)
        mixed = x + attended
        made = self.mlp(self.before_mlp(x if self.parallel else mixed))
        return mixed + (made if self.after_mlp is None else self.after_mlp(made))


class PostNormBlock(Layer):
    """norm(x + attention(x)), then norm(x + mlp(x)), as in Vaswani et al. 2017 and BERT."""

    def __init__(
        self,
        attention: Attention,
        mlp: MLP | GatedMLP,
        *,
        after_attention: Norm,
        after_mlp: Norm,
    ) -> None:
        self.attention, self.mlp = attention, mlp
        self.after_attention, self.after_mlp = after_attention, after_mlp

    def read(self, x: Float[Array, "*b t m"]) -> Float[Array, "*b t m"]:
        return x

    def join(
        self, x: Float[Array, "*b t m"], attended: Float[Array, "*b t m"]
    ) -> Float[Array, "*b t m"]:
        x = self.after_attention(x + attended)
        return self.after_mlp(x + self.mlp(x))
