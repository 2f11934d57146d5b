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
from isonomy.sdk.errors import BackendError, InputError
from isonomy.sdk.generation import Sampling

from . import defaults, layout, packages, quantised, tokenizer, weights
from .architecture import Architecture, Rope
from .config import MAX_POSITIONS, architecture
from .errors import BACKEND, DamagedModel, NotCovered, Tampered
from .template import ChatTemplate

if TYPE_CHECKING:
    from isonomy.kernels import DecoderConfig

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
    int8: bool = False,
    checksums: bool = False,
) -> Checkpoint:
    """Load a checkpoint.

    Args:
        folder: Holds config.json, safetensors, tokenizer.json and the chat template.
        context: Limit below the model's own number of positions.
        chat_template: A template to use instead of the checkpoint's.
        expect: The digest ``model`` that the checkpoint must have.
        int8: Quantise the linears; those of a prepared checkpoint are int8 anyway.
        checksums: Check int8 linears against silent data corruption.

    Raises:
        InputError: checksums are asked for, and the weights are not int8.
        ModelError: a file is missing or damaged, something is not covered, or the digest differs.
        MissingExtra: packages of the extra `local` are not installed.
        BackendError: the compiled kernels can't be used.
    """
    packages.require()
    kernels = _kernels()
    data = _read(folder)
    model = architecture(data, folder / CONFIG, context)
    limit = _context(model, context, folder)
    generation, generation_data = defaults.read(folder)
    settings = tokenizer.read_config(folder)
    tokens = tokenizer.Tokenizer(folder, settings, vocab=model.vocab)
    if chat_template is None:
        source, where = tokenizer.template_source(folder, settings)
    else:
        source, where = chat_template, Path("chat_template=")
    template = ChatTemplate(source, tokens.named, where)
    listing = weights.listing(folder)
    if quantised.is_prepared(data, folder / CONFIG):
        found = weights.find(folder, listing, quantised.arrange(model))
        int8 = True
    else:
        found = weights.find(folder, listing, layout.arrange(model, listing))
    if checksums and not int8:
        raise InputError(
            "checksums are for int8 weights only: sums of floats are not exact. Add "
            'weights="int8", or leave out checksums.'
        )

    artefacts = {
        "config": "blake3:" + blake3(data).hexdigest(),
        "generation_config": "blake3:" + blake3(generation_data).hexdigest(),
        "tokenizer": tokens.digest,
        "chat_template": "blake3:" + blake3(source.encode()).hexdigest(),
        "rope_tables": _rope_digest(kernels, model),
    }
    try:
        config = decoder_config(kernels, model, limit)
        if int8:
            config = msgspec.structs.replace(config, weights="int8", checksums=checksums)
        decoder = kernels.Decoder(config, found)
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
        stored="int8" if int8 else found.stored,
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
    try:
        there = folder.is_dir()
    except OSError:  # a name that no folder can have
        there = False
    if not there:
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


def _frequencies(kernels: Any, rope: Rope) -> Any:
    return kernels.rope_frequencies(rope.rotary_dim, rope.theta, rope.scaling)


def _rope_digest(kernels: Any, model: Architecture) -> str:
    """Digest the frequencies (binary64) and the tables' first rows: all cosines, then all sines."""
    hasher = blake3()
    for rope in model.ropes:
        frequencies = _frequencies(kernels, rope)
        factor = kernels.rope_attention_factor(rope.scaling)
        positions = min(model.max_positions, TABLE_POSITIONS)
        hasher.update(frequencies.astype("<f8").tobytes())
        for table in kernels.rope_tables(frequencies, positions, factor):
            hasher.update(table.astype("<f4").tobytes())
    return "blake3:" + str(hasher.hexdigest())


def decoder_config(kernels: Any, model: Architecture, positions: int) -> DecoderConfig:
    """Return what the kernels need to know of a model, for sequences of up to `positions`."""
    own = {"ropes", "max_positions"}
    shared = set(model.__struct_fields__) & set(kernels.DecoderConfig.__struct_fields__) - own
    config: DecoderConfig = kernels.DecoderConfig(
        ropes=tuple(
            kernels.Rope(
                frequencies=tuple(_frequencies(kernels, rope).tolist()),
                attention_factor=kernels.rope_attention_factor(rope.scaling),
            )
            for rope in model.ropes
        ),
        # A learned table is loaded whole, however little of it will be used.
        max_positions=model.max_positions if model.positions == "learned" else positions,
        **{name: getattr(model, name) for name in shared},
    )
    return config
