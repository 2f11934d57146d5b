"""A checkpoint folder, loaded: model, tokenizer, template, defaults, and the digests of them all.

The order of loading is: configuration, tokenizer and template (cheap, and most mistakes are
there), then the weights. Every byte that can change an answer is in one of the digests, and `model`
is the digest over all the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from blake3 import blake3

from isonomy.sdk.canonical import canonical
from isonomy.sdk.errors import BackendError
from isonomy.sdk.generation import Sampling

from . import defaults, packages, tokenizer, weights
from .config import MAX_POSITIONS, Architecture, architecture
from .errors import BACKEND, DamagedModel, NotCovered, Tampered
from .template import ChatTemplate

if TYPE_CHECKING:
    from isonomy.kernels import Decoder

CONFIG = "config.json"
TABLE_POSITIONS = 1 << 15
"""Positions of the rope tables that enter their digest; the frequencies behind them always do."""


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A loaded checkpoint. `artefacts` are digests by name, ``model`` over the others."""

    folder: Path
    architecture: Architecture
    decoder: Any
    tokenizer: tokenizer.Tokenizer
    template: ChatTemplate
    eos_ids: frozenset[int]
    sampling: Sampling
    stored: str
    context: int
    artefacts: dict[str, str]


def load(
    folder: Path,
    *,
    context: int | None = None,
    chat_template: str | None = None,
    expect: str | None = None,
) -> Checkpoint:
    """Load a checkpoint.

    Args:
        folder: Holds config.json, safetensors, tokenizer.json and the chat template.
        context: Limit below the model's own number of positions.
        chat_template: A template to use instead of the checkpoint's.
        expect: The digest ``model`` that the checkpoint must have.

    Raises:
        ModelError: a file is missing or damaged, something is not covered, or the digest differs.
        MissingExtra: packages of the extra `local` are not installed.
        BackendError: the compiled kernels can't be used.
    """
    packages.require()
    kernels = _kernels()
    data = _read(folder)
    model = architecture(data, folder / CONFIG)
    limit = _context(model, context, folder)
    generation, generation_data = defaults.read(folder)
    settings = tokenizer.read_config(folder)
    tokens = tokenizer.Tokenizer(folder, settings, vocab=model.vocab)
    if chat_template is None:
        source, where = tokenizer.template_source(folder, settings)
    else:
        source, where = chat_template, Path("chat_template=")
    template = ChatTemplate(source, tokens.named, where)
    found = weights.find(folder, model.tensors(), tied=model.tied)

    frequencies = kernels.rope_frequencies(model.head_dim, model.rope.theta, model.rope.scaling)
    artefacts = {
        "config": "blake3:" + blake3(data).hexdigest(),
        "generation_config": "blake3:" + blake3(generation_data).hexdigest(),
        "tokenizer": tokens.digest,
        "chat_template": "blake3:" + blake3(source.encode()).hexdigest(),
        "rope_tables": _rope_digest(kernels, frequencies, model.max_positions),
    }
    try:
        decoder = _decoder(kernels, model, frequencies, limit, found)
    except kernels.KernelError as error:
        if expect is not None:  # the likelier story, and the one with both digests
            _verify(folder, expect, _complete(artefacts, found.digest()))
        raise DamagedModel(
            folder,
            f"{str(error).rstrip('.')}. The weights are damaged or of another model: fetch the "
            "checkpoint again.",
        ) from error
    artefacts = _complete(artefacts, found.digest())
    if expect is not None:
        _verify(folder, expect, artefacts)
    eos = generation.eos_ids()
    return Checkpoint(
        folder=folder,
        architecture=model,
        decoder=decoder,
        tokenizer=tokens,
        template=template,
        eos_ids=frozenset(model.eos_ids if eos is None else eos),
        sampling=generation.sampling(),
        stored=found.stored,
        context=limit,
        artefacts=artefacts,
    )


def _kernels() -> Any:
    kernels = packages.load("isonomy.kernels")
    try:
        kernels.info()
    except kernels.KernelError as error:
        raise BackendError(f"the kernels can't be used: {error}.", backend=BACKEND) from error
    return kernels


def _read(folder: Path) -> bytes:
    if not folder.is_dir():
        raise DamagedModel(
            folder,
            "there is no such folder. Give the path of a checkpoint folder, or 'demo'.",
        )
    try:
        return (folder / CONFIG).read_bytes()
    except OSError as error:
        raise DamagedModel(
            folder / CONFIG,
            f"can't be read ({error.strerror}). Give the folder of a complete checkpoint.",
        ) from None


def _context(model: Architecture, context: int | None, folder: Path) -> int:
    limit = model.max_positions if context is None else min(context, model.max_positions)
    if limit > MAX_POSITIONS:
        raise NotCovered(
            folder / CONFIG,
            "max_position_embeddings",
            f"max_position_embeddings ({model.max_positions}) is above {MAX_POSITIONS}. Pass "
            "context= with the length you need.",
        )
    return limit


def _complete(artefacts: dict[str, str], weights_digest: str) -> dict[str, str]:
    """Add the digests of the weights and of the model as a whole."""
    parts = {**artefacts, "weights": weights_digest}
    return {**parts, "model": "blake3:" + blake3(canonical(parts)).hexdigest()}


def _verify(folder: Path, expect: str, artefacts: dict[str, str]) -> None:
    if artefacts["model"] != expect:
        raise Tampered(folder, expect, artefacts["model"])


def _rope_digest(kernels: Any, frequencies: Any, positions: int) -> str:
    """Digest the frequencies (binary64) and the tables' first rows: all cosines, then all sines."""
    hasher = blake3(frequencies.astype("<f8").tobytes())
    for table in kernels.rope_tables(frequencies, min(positions, TABLE_POSITIONS)):
        hasher.update(table.astype("<f4").tobytes())
    return "blake3:" + str(hasher.hexdigest())


def _decoder(
    kernels: Any, model: Architecture, frequencies: Any, positions: int, found: weights.Weights
) -> Decoder:
    config = kernels.DecoderConfig(
        vocab=model.vocab,
        hidden=model.hidden,
        layers=model.layers,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        intermediate=model.intermediate,
        rms_eps=model.rms_eps,
        frequencies=tuple(frequencies.tolist()),
        qkv_bias=model.qkv_bias,
        o_bias=model.o_bias,
        mlp_bias=model.mlp_bias,
        qk_norm=model.qk_norm,
        windows=model.windows,
        tied=model.tied,
        max_positions=positions,
        activation=model.activation,
    )
    decoder: Decoder = kernels.Decoder(config, found)
    return decoder
