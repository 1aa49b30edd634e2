"""Small modules that are trained around a frozen LM: adapters, Compacter, and a ladder beside it.

The library `adapters` has the first two, but pins a transformers older than the one this project
needs, so they stand here, with their sources; they are a few lines each.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.modeling_outputs import BaseModelOutput

__all__ = ["Ladder", "add_adapters", "add_compacters", "add_parallel_adapters"]

_WIDTH = 32  # of a bottleneck
_PARALLEL_WIDTH, _PARALLEL_SCALE = 64, 4.0
_KRONECKER = 4  # terms of a Kronecker sum
_REDUCTION, _TEMPERATURE = 8, 0.1  # of a ladder: its width, and the sharpness of its gates


class _Bottleneck(nn.Module):  # type: ignore[misc]
    """A block with a bottleneck after it, or beside it."""

    def __init__(
        self, block: nn.Module, down: nn.Module, up: nn.Module, *, parallel: bool, scale: float
    ) -> None:
        super().__init__()
        self.block, self.down, self.up = block, down, up
        self.parallel, self.scale = parallel, scale

    def forward(self, hidden: Any) -> Any:
        found = self.block(hidden)
        read = hidden if self.parallel else found
        return found + self.scale * self.up(nn.functional.gelu(self.down(read)))


class _KroneckerLinear(nn.Module):  # type: ignore[misc]
    """Linear layer whose matrix is a sum of Kronecker products, one factor shared, one of rank 1.

    Source: Karimi Mahabadi et al., "Compacter", NeurIPS 2021: W = Σᵢ Aᵢ ⊗ (sᵢ tᵢᵀ).
    """

    def __init__(self, n_in: int, n_out: int, shared: nn.Parameter, *, zero: bool) -> None:
        super().__init__()
        n = len(shared)
        self.shared = shared
        self.left = nn.Parameter(torch.empty(n, n_in // n, 1).normal_(std=math.sqrt(2 / n_in)))
        self.right = nn.Parameter(torch.zeros(n, 1, n_out // n))
        if not zero:
            nn.init.normal_(self.right)
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, hidden: Any) -> Any:
        small = self.left @ self.right
        weight = torch.einsum("nab,ncd->acbd", self.shared, small)
        n_in = weight.shape[0] * weight.shape[1]
        return hidden @ weight.reshape(n_in, -1) + self.bias


def _freeze(lm: Any) -> None:
    for weight in lm.parameters():
        weight.requires_grad = False


def _linear_pair(size: int, width: int) -> tuple[nn.Linear, nn.Linear]:
    """Return the two layers of a bottleneck that changes nothing at the beginning."""
    down, up = nn.Linear(size, width), nn.Linear(width, size)
    nn.init.zeros_(up.weight)
    nn.init.zeros_(up.bias)
    return down, up


def add_adapters(lm: Any) -> None:
    """Add a bottleneck after each feed-forward block (Pfeiffer et al. 2021), and freeze the LM."""
    _freeze(lm)
    for layer in lm.layers:
        pair = _linear_pair(lm.config.hidden_size, _WIDTH)
        layer.mlp = _Bottleneck(layer.mlp, *pair, parallel=False, scale=1.0)


def add_parallel_adapters(lm: Any) -> None:
    """Add a scaled bottleneck beside each feed-forward block, and freeze the LM.

    Source: He et al., "Towards a unified view of parameter-efficient transfer learning", ICLR 2022;
    with prefix tuning it is their mix-and-match adapter.
    """
    _freeze(lm)
    for layer in lm.layers:
        pair = _linear_pair(lm.config.hidden_size, _PARALLEL_WIDTH)
        layer.mlp = _Bottleneck(layer.mlp, *pair, parallel=True, scale=_PARALLEL_SCALE)


def add_compacters(lm: Any) -> None:
    """Add a Compacter after each feed-forward block (the authors' Compacter++); freeze the LM."""
    _freeze(lm)
    size = lm.config.hidden_size
    shared = nn.Parameter(torch.empty(_KRONECKER, _KRONECKER, _KRONECKER).normal_(std=0.5))
    for layer in lm.layers:
        down = _KroneckerLinear(size, _WIDTH, shared, zero=False)
        up = _KroneckerLinear(_WIDTH, size, shared, zero=True)
        layer.mlp = _Bottleneck(layer.mlp, down, up, parallel=False, scale=1.0)


class Ladder(nn.Module):  # type: ignore[misc]
    """A narrow transformer that reads the hidden states of a frozen LM, through which no gradient
    flows.

    Source: Sung et al., "LST: Ladder side-tuning for parameter and memory efficient transfer
    learning", NeurIPS 2022. Its weights start at random; the authors cut theirs out of the LM's.

    Parameters
    ----------
    lm : transformers model
        The LM; frozen.
    """

    def __init__(self, lm: Any) -> None:
        super().__init__()
        _freeze(lm)
        # not a submodule's place in training mode: nothing of it is trained
        self.lm, self.config = lm, lm.config
        self.side = AutoModel.from_config(_narrow(lm.config), dtype=torch.float32)
        size, n_layers = self.side.config.hidden_size, len(self.side.layers)
        self.down = nn.ModuleList(
            nn.Linear(lm.config.hidden_size, size) for _ in range(n_layers + 1)
        )
        self.gates = nn.Parameter(torch.zeros(n_layers))
        self.up = nn.Linear(size, lm.config.hidden_size)
        self._states: list[Any] = []
        for number, layer in enumerate(self.side.layers):
            layer.register_forward_pre_hook(self._rung(number), with_kwargs=True)

    def forward(self, input_ids: Any, attention_mask: Any, **_: Any) -> BaseModelOutput:
        """Return an output with `last_hidden_state`, of the LM's width."""
        with torch.no_grad():
            states = self.lm(
                input_ids=input_ids,
                attention_mask=attention_mask,
                use_cache=False,
                output_hidden_states=True,
            ).hidden_states
        # as many as there are rungs, evenly spaced
        every = (len(states) - 1) // len(self.side.layers)
        self._states = list(states[every::every])
        found = self.side(
            inputs_embeds=self.down[-1](states[0]), attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        return BaseModelOutput(last_hidden_state=self.up(found))

    def _rung(self, number: int) -> Any:
        def mix(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            gate = torch.sigmoid(self.gates[number] / _TEMPERATURE)
            read = self.down[number](self._states[number])
            if args:
                return (gate * read + (1 - gate) * args[0], *args[1:]), kwargs
            mixed = gate * read + (1 - gate) * kwargs["hidden_states"]
            return args, kwargs | {"hidden_states": mixed}

        return mix


def _narrow(config: Any) -> Any:
    """Return the configuration of a model with half of the layers, an eighth as wide."""
    given = config.to_dict()
    heads = config.num_attention_heads
    size = max(config.hidden_size // _REDUCTION // (2 * heads), 1) * 2 * heads  # even per head
    given |= {
        "hidden_size": size,
        "head_dim": size // heads,
        "intermediate_size": max(config.intermediate_size // _REDUCTION, 1),
        "num_hidden_layers": max(config.num_hidden_layers // 2, 1),
        "vocab_size": 1,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    given.pop("layer_types", None)
    given.pop("model_type")
    return AutoConfig.for_model(config.model_type, **given)
