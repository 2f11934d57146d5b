"""Load a checkpoint into transformers' classes, run it canonically, compare it with the engine.

Safe loading only: local files, safetensors, classes of transformers itself, and every tensor in its
place. One unpadded sequence, float32, no cache, experts one after another.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import torch
import transformers
from transformers.modeling_layers import GradientCheckpointingLayer

from isonomy import kernels
from isonomy.backends.local import checkpoint, quantised
from isonomy.backends.local import weights as weights_of
from isonomy.backends.local.config import architecture
from isonomy.backends.local.layout import arrange
from isonomy.sdk.errors import InputError

from . import int8, replacements
from .dispatch import Canonical
from .errors import BACKEND, GraphRefused, OpinionError
from .results import Difference, Opinion

replacements.register()


def opinion(
    folder: str | Path, ids: npt.ArrayLike, *, weights: Literal["int8"] | None = None
) -> Opinion:
    """See `isonomy.backends.reference.opinion`."""
    if not torch.full((1,), 1e-40).mul(0.5).any():
        raise OpinionError(
            "torch is set to flush subnormal numbers to 0, which changes bits. Call "
            "torch.set_flush_denormal(False) first.",
            backend=BACKEND,
        )
    model = _load(Path(folder))
    tokens = torch.from_numpy(_tokens(ids, model.config))
    with _watched(model) as watch, torch.inference_mode(False), torch.no_grad():
        instead = int8.kernels_for(model, watch.running) if weights == "int8" else {}
        canonical = Canonical(lambda: watch.running[-1], instead)
        try:
            replacements.replace_tables(model, len(tokens))
            with canonical:
                logits = model(tokens[None], use_cache=False).logits[0]
        except kernels.KernelError as error:
            raise OpinionError(f"{watch.running[-1]}: {error}", backend=BACKEND) from error
    return Opinion(
        logits=logits.numpy(),
        model=type(model).__name__,
        canonical=dict(sorted(canonical.canonical.items())),
        passed=dict(sorted(canonical.passed.items())),
        layers=tuple(tuple(kernels.step_digests(out[0].numpy())) for out in watch.outputs),
    )


def compare(
    folder: str | Path, ids: npt.ArrayLike, *, weights: Literal["int8"] | None = None
) -> Difference | None:
    """See `isonomy.backends.reference.compare`."""
    theirs = opinion(folder, ids, weights=weights)
    length = len(theirs.logits)
    try:
        decoder = _engine(Path(folder), length, weights)
        ours = decoder.session(length).feed(np.asarray(ids), all_logits=True)
        difference = first_difference(ours, theirs.logits)
        if difference is None:
            return None
        traced = kernels.StepItem(
            decoder.session(length), np.asarray(ids), draws=length, trace=True, forced=True
        )
        result = decoder.step([traced])[0]
        if isinstance(result, kernels.KernelError):
            raise result
    except kernels.KernelError as error:
        raise OpinionError(f"the engine: {error}", backend=BACKEND) from error
    layer = _first_layer(result.trace or b"", theirs.layers)
    return msgspec.structs.replace(difference, layer=layer)


def _engine(folder: Path, length: int, storage: Literal["int8"] | None) -> kernels.Decoder:
    """The engine's decoder for a checkpoint, without tokenizer and template."""
    path = folder / checkpoint.CONFIG
    model = architecture(path.read_bytes(), path, length)
    listing = weights_of.listing(folder)
    tensors = weights_of.find(folder, listing, arrange(model, listing))
    config = checkpoint.decoder_config(kernels, model, length)
    return kernels.Decoder(msgspec.structs.replace(config, weights=storage or "stored"), tensors)


def _first_layer(trace: bytes, layers: tuple[tuple[bytes, ...], ...]) -> int | None:
    """The first layer whose hidden states differ from those of the trace, at any position."""
    last = kernels.STAGES.index("mlp_residual")
    for index, digests in enumerate(layers):
        for row, digest in enumerate(digests):
            at = 32 * ((row * len(layers) + index) * len(kernels.STAGES) + last)
            if trace[at : at + 32] != digest:
                return index
    return None


def first_difference(
    ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]
) -> Difference | None:
    """Compare two float32 arrays `[n, vocab]` as bits; the engine's comes first."""
    if ours.shape != theirs.shape:
        raise OpinionError(
            f"the engine has logits of shape {ours.shape}, transformers' graph {theirs.shape}: "
            "these are not the same model.",
            backend=BACKEND,
        )
    differ = ours.view(np.uint32) != theirs.view(np.uint32)
    if not differ.any():
        return None
    position, token = np.unravel_index(int(differ.argmax()), differ.shape)
    return Difference(
        position=int(position),
        token=int(token),
        engine=float(ours[position, token]),
        opinion=float(theirs[position, token]),
        logits=int(differ.sum()),
        positions=int(differ.any(axis=1).sum()),
    )


def _tokens(ids: npt.ArrayLike, config: Any) -> npt.NDArray[np.int64]:
    tokens = np.asarray(ids)
    if tokens.ndim != 1 or not tokens.size or tokens.dtype.kind not in "iu":
        raise InputError("ids must be one sequence of at least one integer.")
    if tokens.min() < 0 or tokens.max() >= config.vocab_size:
        raise InputError(f"ids must lie between 0 and {config.vocab_size - 1}, the vocabulary.")
    if tokens.size > config.max_position_embeddings:
        raise InputError(f"ids must be at most {config.max_position_embeddings}, the context.")
    return tokens.astype(np.int64)


def _load(folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise GraphRefused(
            "config.json", str(folder), "there is no config.json. Give a checkpoint's folder."
        )
    if quantised.is_prepared((folder / "config.json").read_bytes(), folder):
        raise GraphRefused(
            quantised.KEY,
            str(folder),
            "its weights are int8, which transformers can't read. Give the checkpoint that it was "
            'prepared from, with weights="int8": the bits are the same.',
        )
    classes: Any = transformers.AutoModelForCausalLM
    bars: Any = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        model, found = classes.from_pretrained(
            str(folder),
            dtype=torch.float32,
            attn_implementation=replacements.ATTENTION,
            experts_implementation="eager",
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise GraphRefused(
            "loading", str(folder), f"transformers does not load it: {error}"
        ) from error
    finally:
        if shown:
            bars.enable_progress_bar()
    # transformers fills gaps with random numbers and goes on.
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if names := sorted(str(name) for name in found.get(kind, ())):
            raise GraphRefused(
                f"weights: {kind}",
                str(folder),
                f"transformers reports {kind.replace('_', ' ')}: {', '.join(names[:3])}. Fetch the "
                "checkpoint again, or use the config.json that belongs to it.",
            )
    return model.eval()


class _Watch:
    """What is known of a forward pass while it runs.

    Attributes:
        running: the modules that are running, the innermost last, as names for errors.
        outputs: of every decoder layer that is done, `[1, n, hidden]`.
    """

    def __init__(self, title: str) -> None:
        self.running = [title]
        self.outputs: list[Any] = []

    def hooks(self, name: str, module: Any) -> list[Any]:
        """Watch a module."""
        title = f"{name} ({type(module).__name__})" if name else type(module).__name__
        is_layer = isinstance(module, GradientCheckpointingLayer)

        def enter(*_: Any) -> None:
            self.running.append(title)

        def leave(_module: Any, _arguments: Any, output: Any) -> None:
            self.running.pop()
            if is_layer:
                self.outputs.append(output)

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]


@contextmanager
def _watched(model: Any) -> Iterator[_Watch]:
    watch = _Watch(type(model).__name__)
    hooks = [hook for named in model.named_modules() for hook in watch.hooks(*named)]
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()
