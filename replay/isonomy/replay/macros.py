"""Questions that are asked so often that the log itself answers them: DuckDB table macros.

They are called like tables with arguments, ``from timeline('018f...')``, in a query of
`isonomy sql` as in any DuckDB client that has `audit.duckdb` open (one that attaches it says `use`
first: DuckDB looks for what a macro names where the session is). Each is text over the documented
views; what it gives is described by its comment, which ``duckdb_functions()`` shows.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Macro(NamedTuple):
    """A table macro: its parameters, its SQL over the views, what it gives."""

    parameters: tuple[str, ...]
    sql: str
    comment: str


_COMPARED: Final = {
    "type": "e.type",
    "stage": "e.stage",
    "check": "e.check_id",
    "target": "e.target",
    "round": "e.round",
    "verdict": "e.verdict",
    "reason": "e.reason",
    "score": "e.score",
    "before": "e.before",
    "after": "e.after",
    "decision": "e.decision",
    "failure": "e.failure",
    "error": "e.error",
    "text": "g.text",
    "finish_reason": "g.finish_reason",
    "tokens": "g.token_ids",
    "logits": "g.chain",
}
"""What of two events is compared: the name that `differs` tells, and where it stands."""

_STEPS = (
    "SELECT e.sequence, "
    + ", ".join(f'{expression} AS "{name}"' for name, expression in _COMPARED.items())
    + ", row_number() OVER (PARTITION BY e.type ORDER BY e.sequence) - 1 AS nth"
    " FROM main.events e LEFT JOIN main.generations g"
    " ON g.call_id = e.call_id AND g.sequence = e.sequence WHERE e.call_id = {call}"
)
_DIFFERS = ", ".join(
    f'CASE WHEN x."{name}" IS DISTINCT FROM y."{name}" THEN \'{name}\' END' for name in _COMPARED
)
_STREAM = (
    "SELECT n.nth AS generation, t.step, t.token_id, t.text, t.logprob, t.digest"
    " FROM main.tokens t JOIN (SELECT sequence, row_number() OVER (ORDER BY sequence) - 1 AS nth"
    " FROM main.generations WHERE call_id = {call}) n ON n.sequence = t.generation"
    " WHERE t.call_id = {call}"
)
_BESIDE = (
    "SELECT coalesce(x.generation, y.generation) AS generation, coalesce(x.step, y.step) AS step,"
    " x.token_id AS token_a, y.token_id AS token_b, x.text AS text_a, y.text AS text_b,"
    " x.logprob AS logprob_a, y.logprob AS logprob_b,"
    " x.token_id IS NOT DISTINCT FROM y.token_id AS same_token,"
    " x.digest IS NOT DISTINCT FROM y.digest AS same_logits"
    f" FROM ({_STREAM.format(call='a')}) x FULL JOIN ({_STREAM.format(call='b')}) y"
    " ON x.generation = y.generation AND x.step = y.step"
)

MACROS: Final[dict[str, Macro]] = {
    "first_divergence": Macro(
        ("a", "b"),
        "WITH steps AS (SELECT coalesce(x.sequence, y.sequence) AS sequence,"
        " x.type AS type_a, y.type AS type_b, coalesce(x.stage, y.stage) AS stage,"
        ' coalesce(x."check", y."check") AS check_id,'
        f" list_filter([{_DIFFERS}], lambda name: name IS NOT NULL) AS differs,"
        " x.verdict AS verdict_a, y.verdict AS verdict_b, x.nth"
        f" FROM ({_STEPS.format(call='a')}) x FULL JOIN ({_STEPS.format(call='b')}) y"
        " ON x.sequence = y.sequence),"
        " first AS (SELECT * FROM steps WHERE len(differs) > 0 ORDER BY sequence LIMIT 1),"
        f" tokens AS (SELECT * FROM ({_BESIDE}) WHERE NOT same_token OR NOT same_logits)"
        " SELECT f.sequence, f.type_a, f.type_b, f.stage, f.check_id, f.differs, f.verdict_a,"
        " f.verdict_b, t.step, t.token_a, t.token_b, t.text_a, t.text_b, t.same_token"
        " FROM first f LEFT JOIN tokens t ON t.generation = f.nth AND f.type_a = 'generated'"
        " AND f.type_b = 'generated' ORDER BY t.step LIMIT 1",
        "The first event in which two calls differ, what of it differs, and within a generation the"
        " first token: one row, or none where the calls agree. Durations are not compared.",
    ),
    "timeline": Macro(
        ("call",),
        "WITH kept AS (SELECT sequence AS record, kind FROM main.records WHERE call_id = call),"
        " times AS (SELECT sequence AS record, started_at AS time, input_text AS text FROM"
        " main.calls WHERE call_id = call UNION ALL SELECT result_record, started_at"
        " + to_microseconds((duration_ms * 1000)::BIGINT), output_text FROM main.calls"
        " WHERE call_id = call AND result_record IS NOT NULL UNION ALL SELECT record,"
        " released_at, text FROM main.segments WHERE call_id = call)"
        " SELECT * FROM (SELECT k.record, NULL::BIGINT AS sequence, k.kind AS step, NULL AS stage,"
        " NULL AS check_id, NULL AS verdict, NULL AS reason, t.text, t.time, NULL::DOUBLE AS"
        " duration_ms FROM kept k LEFT JOIN times t ON t.record = k.record UNION ALL"
        " SELECT e.record, e.sequence, e.type, e.stage, e.check_id, coalesce(e.verdict,"
        " e.decision), coalesce(e.reason, e.error_message, e.name), g.text, NULL, e.duration_ms"
        " FROM main.events e LEFT JOIN main.generations g ON g.call_id = e.call_id"
        " AND g.sequence = e.sequence WHERE e.call_id = call)"
        " ORDER BY record, sequence NULLS LAST",
        "Everything that is recorded of a call, in the order of the log: its events, and after them"
        " the record that holds them (with its time; of the result: when the call ended).",
    ),
    "verdicts_by_policy": Macro(
        (),
        "SELECT policy_name, policy_digest, coalesce(verdict, status) AS verdict, count(*) AS"
        " calls, count(*) / sum(count(*)) OVER (PARTITION BY policy_digest) AS share,"
        " min(started_at) AS first, max(started_at) AS last FROM main.calls"
        " GROUP BY policy_name, policy_digest, coalesce(verdict, status)"
        " ORDER BY min(sequence), verdict",
        "How often each version of a policy came to each verdict; unfinished stands for calls"
        " without a result.",
    ),
    "tokens_beside": Macro(
        ("a", "b"),
        f"{_BESIDE} ORDER BY generation, step",
        "The tokens of two calls side by side, by the number of the generation within its call"
        " (from 0) and the step; NULL where one of them has no such step.",
    ),
}
"""By name."""
