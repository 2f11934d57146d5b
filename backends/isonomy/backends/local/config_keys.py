"""The keys of ``config.json`` that no family's struct reads: which are harmless, which are fixed.

A key belongs here only when its effect is known: `HARMLESS` says why it has none, `FIXED` and
`FOREIGN` with which values it has none. Everything that is in no table is refused.
"""

from __future__ import annotations

from typing import Any

_TRAINING = "matters in training only"
_OUTPUTS = "chooses what transformers returns, not what it computes"
_GENERATION = "transformers reads it from generation_config.json, not from config.json"
_TASKS = "belongs to other heads than the language model's"
_RECORD = "a record of where the file comes from"
_PREPARED = "read, and checked, by `quantised`"

HARMLESS: dict[str, str] = {
    "isonomy_quantization": _PREPARED,
    **dict.fromkeys(
        (
            "attention_dropout",
            "gradient_checkpointing",
            "attn_pdrop",
            "embd_pdrop",
            "hidden_dropout",
            "initializer_factor",
            "initializer_range",
            "resid_pdrop",
            "router_aux_loss_coef",
            "router_jitter_noise",
            "tf_legacy_loss",
        ),
        _TRAINING,
    ),
    **dict.fromkeys(
        (
            "chunk_size_feed_forward",
            "output_attentions",
            "output_hidden_states",
            "output_router_logits",
            "return_dict",
            "tie_last_hidden_states",
            "torchscript",
            "use_cache",
        ),
        _OUTPUTS,
    ),
    **dict.fromkeys(
        (
            "bad_words_ids",
            "begin_suppress_tokens",
            "cache_implementation",
            "diversity_penalty",
            "do_sample",
            "early_stopping",
            "encoder_no_repeat_ngram_size",
            "exponential_decay_length_penalty",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "length_penalty",
            "max_length",
            "min_length",
            "no_repeat_ngram_size",
            "num_beam_groups",
            "num_beams",
            "num_return_sequences",
            "output_scores",
            "remove_invalid_values",
            "repetition_penalty",
            "return_dict_in_generate",
            "suppress_tokens",
            "temperature",
            "top_k",
            "top_p",
            "typical_p",
        ),
        _GENERATION,
    ),
    **dict.fromkeys(
        (
            "decoder_start_token_id",
            "finetuning_task",
            "id2label",
            "label2id",
            "num_labels",
            "prefix",
            "problem_type",
            "sep_token_id",
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
            "task_specific_params",
            "tokenizer_class",
        ),
        _TASKS,
    ),
    **dict.fromkeys(
        (
            "_attn_implementation_autoset",
            "_commit_hash",
            "_name_or_path",
            "is_llama_config",
            "name_or_path",
            "transformers.js_config",
            "transformers_version",
            "unsloth_fixed",
            "unsloth_version",
        ),
        _RECORD,
    ),
    "dtype": "weights are used as they are stored, activations are f32",
    "torch_dtype": "weights are used as they are stored, activations are f32",
    "pretraining_tp": "a way to split a product in training; transformers no longer reads it",
    "use_bfloat16": "activations are f32",
}
"""Keys that change nothing here, and why."""

FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "add_cross_attention": ((False,), "cross-attention"),
    "attn_logit_softcapping": ((None,), "a soft cap on attention scores"),
    "clip_qkv": ((None,), "clipped projections"),
    "cross_attention_hidden_size": ((None,), "cross-attention"),
    "final_logit_softcapping": ((None,), "a soft cap on logits"),
    "full_attn_mod": ((1, None), "layers that attend differently"),
    "interpolate_factor": ((1, None), "interpolated positions"),
    "is_decoder": ((False, True), "an encoder"),
    "is_encoder_decoder": ((False,), "an encoder beside the decoder"),
    "lm_head_bias": ((False, None), "a bias on the logits"),
    "per_layer_config": ((None,), "layers of different shapes"),
    "pruned_heads": (({}, None), "pruned heads"),
    "quantization_config": ((None,), "quantised weights"),
    "reorder_and_upcast_attn": ((False,), "another order of attention's operations"),
    "rope_interleaved": ((False,), "interleaved rope"),
    "scale_attn_by_inverse_layer_idx": ((False,), "scores scaled by layer"),
    "tie_encoder_decoder": ((False,), "an encoder beside the decoder"),
    "use_bidirectional_attention": ((False, None), "attention to later tokens"),
    "use_mrope": ((False,), "multimodal rope"),
}
"""Keys of which only these values are covered, and what another value would ask for."""

FOREIGN: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "layer_types": (None,),
    "max_window_layers": (),
    "mlp_bias": (False,),
    "sliding_window": (None,),
    "sliding_window_size": (),
    "use_sliding_window": (False,),
}
"""Keys that a family has in common with another but doesn't read itself: covered at these values
and null only; an empty tuple means that the key has no effect on its own."""
