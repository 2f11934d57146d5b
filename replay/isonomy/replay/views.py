"""The views that auditors query, each column with its documentation.

Documentation is data here: it becomes ``COMMENT ON COLUMN`` in the DuckDB log, so that any client
shows it (``SELECT * FROM duckdb_columns()``). All times are UTC; order is `record`, the sequence
number in the log, never time.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class View(NamedTuple):
    """A view: its SQL over the base tables, what it is, its columns in order."""

    sql: str
    comment: str
    columns: tuple[str, ...]


def _view(
    body: str, comment: str, columns: tuple[tuple[str, str, str], ...]
) -> tuple[View, list[str]]:
    listed = ", ".join(f'{expression} AS "{name}"' for name, expression, _ in columns)
    view = View(f"SELECT {listed} {body}", comment, tuple(name for name, _, _ in columns))
    return view, [text for _, _, text in columns]


_CALL = "the call's id; joins all views"
_RECORD = "sequence number in the log of the record that this row comes from"
_SEQUENCE = "number of the event within its call, from 0"

_CHECK = (
    "(SELECT call_id, check_id, min(plugin) AS plugin, min(package) AS package, min(version) AS"
    " version, min(code) AS code, min(settings) AS settings FROM stored.checks"
    " GROUP BY call_id, check_id)"
)
"""One row a check of a call, which it is anyway: where DuckDB knows, it does not join what is not
asked for."""

_DEFINITIONS: Final = {
    "calls": _view(
        "FROM stored.intents i FULL JOIN stored.results r ON r.call_id = i.call_id"
        " FULL JOIN (SELECT call_id, min(record) AS record, min(wall_ns) AS wall_ns,"
        " min(session) AS session, min(subject) AS subject, min(host) AS host,"
        " min(process) AS process FROM stored.openings GROUP BY call_id) o"
        " ON o.call_id = coalesce(i.call_id, r.call_id)"
        " LEFT JOIN (SELECT call_id, count(*) AS pieces FROM stored.segments GROUP BY call_id) s"
        " ON s.call_id = coalesce(i.call_id, r.call_id, o.call_id)",
        "One row a call. A call without a result is unfinished: evidence of a crash, or still "
        "running.",
        (
            ("call_id", "coalesce(i.call_id, r.call_id, o.call_id)", _CALL),
            (
                "started_at",
                "make_timestamp(coalesce(i.wall_ns, o.wall_ns, r.wall_ns) // 1000)",
                "wall clock at the intent, UTC, microseconds",
            ),
            ("session", "coalesce(i.session, o.session)", "conversation the call belongs to"),
            (
                "subject",
                "coalesce(i.subject, o.subject)",
                "whose data the call holds: the unit of erasure",
            ),
            ("actor", "i.actor", "who asked, as the application named them"),
            ("operation", "i.operation", "how it was asked: chat, stream, resume; or import"),
            (
                "resumes",
                "i.resumes",
                "the call that waited for a person, where this goes on with it",
            ),
            ("provider", "i.provider", "backend that was asked, e.g. local, openai"),
            ("model", "i.model", "model that was asked for"),
            (
                "verdict",
                "r.verdict",
                "strongest verdict that applied: allow, flag, replace, retry, ask_human, block; "
                "NULL while unfinished",
            ),
            (
                "status",
                "CASE WHEN r.call_id IS NULL THEN 'unfinished' ELSE 'complete' END",
                "complete, or unfinished where the log has no result",
            ),
            ("finish_reason", "r.finish_reason", "why the model stopped, e.g. stop, length"),
            ("policy_name", "i.policy_name", "name of the policy that judged"),
            ("policy_digest", "i.policy_digest", "digest of the policy as written"),
            (
                "input_text",
                "i.input",
                "text of the last user message as passed in; NULL where not stored",
            ),
            (
                "output_text",
                "r.output",
                "text released to the caller; NULL where not stored or none",
            ),
            ("refusal", "r.refusal", "whether the released text is the policy's refusal"),
            ("decided_by", "r.decided_by", "id of the check whose verdict decided"),
            ("reason", "r.reason", "that check's reason"),
            ("error", "r.error", "type of the error that ended the call, if one did"),
            ("error_message", "r.error_message", "that error's message"),
            ("input_tokens", "r.input_tokens", "tokens fed to the model, where known"),
            ("output_tokens", "r.output_tokens", "tokens the model gave, where known"),
            ("rounds", "r.rounds", "generations that the call took"),
            ("duration_ms", "r.duration_ns / 1e6", "duration of the whole call, milliseconds"),
            (
                "first_released_ms",
                "r.first_released_ns / 1e6",
                "of a stream: from the call's begin to its first segment, milliseconds",
            ),
            (
                "stalled",
                "r.stalled",
                "by round: characters of the answer at which a check missed its deadline in "
                "mid-stream, JSON object",
            ),
            (
                "segments",
                "coalesce(s.pieces, 0)",
                "pieces of the answer that left as a stream; see the view segments",
            ),
            (
                "token",
                "r.token",
                "digest of the token by which a call that waits for a person is resumed",
            ),
            ("trace_id", "i.trace_id", "W3C trace id"),
            ("parent_id", "i.parent_id", "W3C parent span id"),
            ("tags", "i.tags", "the application's tags, JSON object"),
            ("host", "coalesce(i.host, o.host)", "host that recorded the intent"),
            ("process", "coalesce(i.process, o.process)", "process id on that host"),
            ("backends", "i.backends", "the guard's further backends by name, JSON object"),
            ("versions", "i.versions", "versions of what ran, JSON object"),
            (
                "started_ns",
                "coalesce(i.wall_ns, o.wall_ns, r.wall_ns)",
                "started_at in nanoseconds since 1970",
            ),
            (
                "sequence",
                "coalesce(i.record, o.record, r.record)",
                "sequence number in the log of the intent, or of the first opening",
            ),
            ("result_record", "r.record", "sequence number in the log of the result"),
        ),
    ),
    "events": _view(
        f"FROM stored.events e LEFT JOIN {_CHECK} c"
        " ON c.call_id = e.call_id AND c.check_id = e.check_id",
        "One row an event: every step of a call, as recorded and as compared on replay.",
        (
            ("call_id", "e.call_id", _CALL),
            ("sequence", "e.sequence", _SEQUENCE),
            (
                "type",
                "e.type",
                "judged, failed, unjudged, decided, effect, critiqued, revised, ranked, generated, "
                "scored, backend_failed",
            ),
            ("stage", "e.stage", "where in the pipeline, e.g. pre_filter, generate, post_validate"),
            ("check_id", "e.check_id", "id of the check in its policy"),
            ("plugin", "c.plugin", "registered name of the check's plugin, or name of a callable"),
            ("target", "e.target", "what was judged: message/N, messages, candidate/N"),
            ("round", "e.round", "regeneration the event belongs to, from 0"),
            ("verdict", "e.verdict", "verdict, or what a failure became; NULL for an abstention"),
            (
                "shadow",
                "e.shadow",
                "whether the check is on trial: what it said changed nothing; NULL where no check",
            ),
            ("reason", "e.reason", "reason or feedback that came with the verdict or decision"),
            ("score", "e.score", "score that came with the verdict"),
            ("labels", "e.labels", "labels that came with the verdict, or that were scored"),
            ("before", "e.before", "digest of what the check saw"),
            ("after", "e.after", "digest of what stood afterwards, if it was changed"),
            ("name", "e.name", "name of an effect"),
            ("decision", "e.decision", "what a person decided: approve, edit, reject"),
            ("decided_by", "e.decided_by", "who decided, as the application named them"),
            (
                "backend",
                "e.backend",
                "which of the guard's further backends was asked; NULL for the call's own",
            ),
            ("failure", "e.failure", "how a check failed: error, timeout, invalid"),
            ("error", "e.error", "type of the error"),
            ("error_message", "e.error_message", "message of the error"),
            ("duration_ms", "e.duration_ns / 1e6", "duration, milliseconds"),
            (
                "content",
                "e.content",
                "the event as hashed, JSON; NULL for generated (see generations, payloads)",
            ),
            ("record", "e.record", _RECORD),
        ),
    ),
    "decisions": _view(
        f"FROM stored.events e LEFT JOIN {_CHECK} c"
        " ON c.call_id = e.call_id AND c.check_id = e.check_id WHERE e.type IN ('judged', "
        "'failed')",
        "One row each time a check was asked: its verdict, or its failure and what that became.",
        (
            ("call_id", "e.call_id", _CALL),
            ("sequence", "e.sequence", _SEQUENCE),
            ("stage", "e.stage", "where in the pipeline the check was asked"),
            ("check_id", "e.check_id", "id of the check in its policy"),
            ("plugin", "c.plugin", "registered name of the check's plugin, or name of a callable"),
            ("target", "e.target", "what was judged: message/N, messages, candidate/N"),
            ("round", "e.round", "regeneration, from 0"),
            (
                "verdict",
                "e.verdict",
                "allow, flag, replace, retry, ask_human, block; of a failure what it became; NULL "
                "for an abstention",
            ),
            (
                "shadow",
                "e.shadow",
                "whether the check is on trial: its verdict was recorded and changed nothing",
            ),
            ("reason", "e.reason", "reason or feedback given"),
            ("score", "e.score", "score given"),
            ("labels", "e.labels", "labels given"),
            (
                "failure",
                "e.failure",
                "how the check failed: error, timeout, invalid; NULL for a verdict",
            ),
            ("error", "e.error", "type of the error of a failed check"),
            ("error_message", "e.error_message", "message of that error"),
            ("duration_ms", "e.duration_ns / 1e6", "how long the check took, milliseconds"),
            ("package", "c.package", "distribution the check came from"),
            ("version", "c.version", "version of that distribution"),
            (
                "code",
                "c.code",
                "digest of the check's code: it identifies, it does not authenticate",
            ),
            ("settings", "c.settings", "digest of the check's settings"),
            ("record", "e.record", _RECORD),
        ),
    ),
    "critiques": _view(
        "FROM (SELECT *, unnest(from_json(content::JSON -> 'critiques', "
        """'[{"principle": "VARCHAR", "score": "DOUBLE", "reason": "VARCHAR"}]')) AS said"""
        " FROM stored.events WHERE type = 'critiqued') e",
        "One row each time a candidate was judged by a principle.",
        (
            ("call_id", "e.call_id", _CALL),
            ("sequence", "e.sequence", _SEQUENCE),
            ("check_id", "e.check_id", "id of the check in its policy"),
            ("target", "e.target", "what was judged: candidate/N, as it stood at this event"),
            ("round", "e.round", "regeneration, from 0"),
            ("principle", "e.said.principle", "the principle, e.g. asimov/first"),
            ("score", "e.said.score", "1 full compliance, 0 a breach"),
            ("reason", "e.said.reason", "critique in words"),
            (
                "shadow",
                "e.shadow",
                "whether the check is on trial: its critique was recorded and changed nothing",
            ),
            ("record", "e.record", _RECORD),
        ),
    ),
    "rankings": _view(
        "FROM (SELECT *, unnest(generate_series(0, len(ranked) - 1)) AS place FROM"
        " (SELECT *, from_json(content::JSON -> 'ranking' -> 'order', '[\"INTEGER\"]') AS ranked,"
        " from_json(content::JSON -> 'ranking' -> 'scores', '[\"DOUBLE\"]') AS scores"
        " FROM stored.events WHERE type = 'ranked') r) e",
        "One row a candidate each time a check put candidates in order.",
        (
            ("call_id", "e.call_id", _CALL),
            ("sequence", "e.sequence", _SEQUENCE),
            ("check_id", "e.check_id", "id of the check in its policy"),
            ("round", "e.round", "regeneration, from 0"),
            ("place", "e.place", "place of the candidate, from 0, the best"),
            ("candidate", "e.ranked[e.place + 1]", "number of the candidate"),
            ("score", "e.scores[e.place + 1]", "score that put it there, where the check gave one"),
            (
                "shadow",
                "e.shadow",
                "whether the check is on trial: its order was recorded and changed nothing",
            ),
            ("record", "e.record", _RECORD),
        ),
    ),
    "generations": _view(
        "FROM stored.generations g LEFT JOIN stored.intents i ON i.call_id = g.call_id",
        "One row each time the backend answered.",
        (
            ("call_id", "g.call_id", _CALL),
            ("sequence", "g.sequence", _SEQUENCE),
            ("purpose", "g.purpose", "answer, or nested for a plugin's own generation"),
            ("candidate", "g.candidate", "number of the candidate"),
            ("round", "g.round", "regeneration, from 0"),
            (
                "backend",
                "g.backend",
                "which of the guard's further backends answered; NULL for the call's own, of which "
                "provider, model_digest, artefacts, numerics and deterministic tell",
            ),
            ("provider", "i.provider", "backend that answered"),
            ("model", "g.model", "model that answered, as the backend resolved it"),
            (
                "response_format",
                "g.response_format",
                "form that a plugin asked for, JSON; the call's own is in its request",
            ),
            (
                "model_digest",
                "i.model_digest",
                "digest of the model as a whole (weights, tokenizer, template, configuration)",
            ),
            ("artefacts", "i.artefacts", "digests of the model's parts, JSON object"),
            (
                "numerics_version",
                "i.numerics_version",
                "version of the numerics specification; NULL on remote backends",
            ),
            ("numerics", "i.numerics", "kernel configuration that can matter, JSON object"),
            (
                "deterministic",
                "i.deterministic",
                "whether the backend promises the same bits again",
            ),
            ("temperature", "g.temperature", "sampling temperature as used"),
            ("top_p", "g.top_p", "nucleus threshold as used"),
            ("top_k", "g.top_k", "number of most likely tokens kept, as used"),
            ("min_p", "g.min_p", "minimal relative probability, as used"),
            ("repetition_penalty", "g.repetition_penalty", "repetition penalty as used"),
            ("max_tokens", "g.max_tokens", "limit of tokens, as used"),
            ("stop", "g.stop", "stop strings"),
            ("seed", "g.seed", "seed of the sampling noise, unsigned 64 bits"),
            ("text", "g.text", "text the model gave, before any check"),
            ("finish_reason", "g.finish_reason", "why the model stopped"),
            ("input_tokens", "g.input_tokens", "tokens fed to the model, where known"),
            ("output_tokens", "g.output_tokens", "tokens the model gave, where known"),
            ("prompt", "g.prompt", "prompt as rendered by the chat template, where known"),
            ("prompt_ids", "g.prompt_ids", "token ids of the prompt, where known"),
            ("token_ids", "g.token_ids", "token ids of the answer, where known"),
            (
                "chain",
                "lower(hex(g.chain))",
                "running chain of the logit digests after the last step, BLAKE3, hexadecimal",
            ),
            ("raw", "g.raw", "provider's response as received, without secrets"),
            ("attempts", "g.attempts", "tries at a remote endpoint; see the view attempts"),
            ("duration_ms", "g.duration_ns / 1e6", "duration of the generation, milliseconds"),
            ("record", "g.record", _RECORD),
        ),
    ),
    "segments": _view(
        "FROM stored.segments s",
        "One row a piece of an answer that left as a stream, in the order in which they left; the "
        "last of a call whose process died may not have reached its reader.",
        (
            ("call_id", "s.call_id", _CALL),
            ("number", "s.number", "number of the segment within its call, from 0"),
            ("start", "s.start", "where it begins in the released text, in characters"),
            ("text", "s.text", "the piece; NULL where not stored"),
            (
                "released_at",
                "make_timestamp(s.wall_ns // 1000)",
                "wall clock when its record was made, right before it left, UTC, microseconds",
            ),
            ("record", "s.record", _RECORD),
        ),
    ),
    "attempts": _view(
        "FROM stored.attempts a LEFT JOIN stored.intents i ON i.call_id = a.call_id",
        "One row a try at a remote endpoint, of generations that came and of those that failed.",
        (
            ("call_id", "a.call_id", _CALL),
            (
                "sequence",
                "a.sequence",
                "number within its call of the event that it belongs to: events.sequence",
            ),
            ("position", "a.position", "place among the tries of that event, from 0"),
            ("number", "a.number", "number of the try at its endpoint, from 1"),
            (
                "backend",
                "a.backend",
                "which of several backends behind one was tried; NULL where there is one",
            ),
            ("provider", "i.provider", "backend that the call was for"),
            ("outcome", "a.outcome", "what came of it, e.g. ok, timeout, refused, overloaded"),
            ("status", "a.status", "HTTP status, if there was one"),
            ("error", "a.error", "what was wrong, in words"),
            ("duration_ms", "a.duration_ns / 1e6", "how long it took, milliseconds"),
            ("wait_ms", "a.wait_ns / 1e6", "how long was waited before the next, milliseconds"),
            ("record", "a.record", _RECORD),
        ),
    ),
    "tokens": _view(
        "FROM (SELECT call_id, sequence, record, unnest(generate_series(0, len(token_ids) - 1)) AS "
        "step, unnest(token_ids) AS token_id, unnest(token_texts) AS text,"
        " unnest(token_logprobs) AS logprob, token_digests, token_chains"
        " FROM stored.generations WHERE len(token_ids) > 0) t",
        "One row a generated token, on backends that give evidence of every step.",
        (
            ("call_id", "t.call_id", _CALL),
            (
                "generation",
                "t.sequence",
                "number within its call of the event that generated it: generations.sequence",
            ),
            ("step", "t.step", "number of the token within its generation, from 0"),
            ("token_id", "t.token_id", "the token's id in the model's vocabulary"),
            ("text", "t.text", "piece of text the token stands for"),
            ("logprob", "t.logprob", "log-probability, binary32, the bits as computed"),
            (
                "digest",
                "nullif(lower(hex(array_slice(t.token_digests, 32 * t.step + 1, 32 * t.step + "
                "32))), '')",
                "BLAKE3 of the step's logits, hexadecimal",
            ),
            (
                "chain",
                "nullif(lower(hex(array_slice(t.token_chains, 32 * t.step + 1, 32 * t.step + "
                "32))), '')",
                "running chain after this step: BLAKE3(previous chain || digest), from 32 zero "
                "bytes",
            ),
            ("record", "t.record", _RECORD),
        ),
    ),
    "checks": _view(
        "FROM stored.checks c",
        "One row for each check of a call's policy: which code judged, and how it was set.",
        (
            ("call_id", "c.call_id", _CALL),
            ("position", "c.position", "place in the policy's order"),
            ("check_id", "c.check_id", "id of the check in its policy"),
            ("plugin", "c.plugin", "registered name of the plugin, or name of a callable"),
            ("stages", "c.stages", "stages at which it is asked"),
            ("package", "c.package", "distribution it came from"),
            ("version", "c.version", "version of that distribution"),
            ("settings", "c.settings", "digest of its settings"),
            ("code", "c.code", "digest of its code: it identifies, it does not authenticate"),
            (
                "code_partial",
                "c.code_partial",
                "whether not everything that it runs could be digested",
            ),
            ("kind", "c.kind", "plugin, or callable of the application"),
            ("record", "c.record", _RECORD),
        ),
    ),
    "records": _view(
        "FROM stored.records r",
        "One row a record of the log, as hashed.",
        (
            ("sequence", "r.record", "sequence number in the log, from 1 without gaps"),
            ("call_id", "r.call_id", _CALL),
            (
                "kind",
                "r.kind",
                "opening, intent, segment or result; gap where records were lost",
            ),
            ("leaf", "r.leaf", "the hashed bytes, JSON: the record and its payloads' commitments"),
            ("leaf_hash", "r.leaf_hash", "SHA-256(0x00 || leaf), hexadecimal"),
        ),
    ),
    "payloads": _view(
        "FROM stored.payloads p JOIN stored.records r ON r.record = p.record"
        " LEFT JOIN stored.contents c ON c.content = p.content",
        "One row a payload of a record: content, as hashed.",
        (
            ("record", "p.record", _RECORD),
            ("call_id", "r.call_id", _CALL),
            ("position", "p.position", "place in the leaf"),
            ("name", "p.name", "policy, message/N, request, events, output, pending, text"),
            (
                "commitment",
                "p.commitment",
                "the leaf's commitment to the content: SHA-256(0x02 || salt || content)",
            ),
            (
                "content",
                "p.content",
                "number of the stored content; equal within a subject means equal bytes",
            ),
            ("json", "try(decode(c.body))", "the content as hashed, JSON text"),
            ("erased", "p.erased", "whether it was erased; see tombstones"),
        ),
    ),
    "masked": _view(
        "FROM stored.masked m",
        "One row a place in a payload from which something was taken before it was recorded.",
        (
            ("call_id", "m.call_id", _CALL),
            ("payload", "m.payload", "name of the payload, as in the view payloads"),
            (
                "pointer",
                "m.pointer",
                "JSON pointer into it; where it names plain data, something in that",
            ),
            ("record", "m.record", _RECORD),
            ("position", "m.position", "place in the record's list"),
        ),
    ),
    "tombstones": _view(
        "FROM stored.tombstones t",
        "Two rows an erasure of content: before it began, and when nothing was left.",
        (
            ("call_id", "t.call_id", "id of the tombstone itself; it belongs to no call"),
            (
                "recorded_at",
                "make_timestamp(t.wall_ns // 1000)",
                "wall clock, UTC, microseconds",
            ),
            ("what", "t.what", "call or subject"),
            ("target", "t.target", "id of the call, or the subject, whose content was erased"),
            ("erased_by", "t.erased_by", "who had it erased"),
            ("reason", "t.reason", "why"),
            ("done", "t.done", "false for the row from before it began"),
            (
                "erased",
                "t.erased",
                "payloads that are gone, JSON array of a record's number and names",
            ),
            ("kept", "t.kept", "payloads that stay, as other calls of the subject hold the same"),
            ("record", "t.record", _RECORD),
        ),
    ),
    "gaps": _view(
        "FROM stored.gaps g",
        "One row a gap: records that could not be written while calls went on, told afterwards.",
        (
            (
                "since",
                "make_timestamp(g.since_ns // 1000)",
                "wall clock of the first loss, UTC, microseconds",
            ),
            ("until", "make_timestamp(g.until_ns // 1000)", "when writing was possible again, UTC"),
            ("entries", "g.entries", "how many records were lost"),
            ("calls", "g.calls", "of how many calls that are named in lost"),
            ("lost", "g.lost", "by call id: how many records of which kind, JSON object"),
            (
                "unnamed",
                "g.unnamed",
                "how many of entries are of calls that are not named, as they were too many",
            ),
            ("reason", "g.reason", "the error of the first loss"),
            ("host", "g.host", "host that could not write"),
            ("process", "g.process", "process id on that host"),
            ("record", "g.record", _RECORD),
        ),
    ),
    "damaged": _view(
        "FROM stored.damaged d",
        "Records of the journal that did not fit their hashes when they were read; they are in no "
        "other view.",
        (
            ("sequence", "d.record", "sequence number in the log"),
            ("call_id", "d.call_id", "the call's id, as far as it could be read"),
            ("problem", "d.problem", "what does not fit"),
        ),
    ),
}

VIEWS: Final[dict[str, View]] = {name: view for name, (view, _) in _DEFINITIONS.items()}
COMMENTS: Final[dict[tuple[str, str], str]] = {
    (name, column): text
    for name, (view, texts) in _DEFINITIONS.items()
    for column, text in zip(view.columns, texts, strict=True)
}
"""What each column means, by view and column."""
