"""Questions that auditors and investigators ask of a log, each with its SQL over the views.

The one source of three things: ``isonomy sql --question NAME``, QUESTIONS.md beside this file
(``python -m isonomy.replay.questions > QUESTIONS.md``), and the tests that ask each of a log whose
answers are known.

A question's parameters are texts, as a shell gives them; its SQL casts them. One without a default
must be given.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from typing import Final, NamedTuple

from isonomy.sdk.errors import InputError


class Parameter(NamedTuple):
    """What a question must be told: what it is, and what it is unless given."""

    meaning: str
    default: str | None = None


class Question(NamedTuple):
    """A question, in words and in SQL."""

    asks: str
    sql: str
    parameters: Mapping[str, Parameter] = {}

    def bind(self, name: str, given: Mapping[str, str]) -> dict[str, str]:
        """Return the values of the parameters.

        Raises:
            InputError: one is missing, or unknown.
        """
        for key in given:
            if key not in self.parameters:
                known = ", ".join(self.parameters) or "none"
                raise InputError(f"the question {name} has no parameter {key!r}; it has: {known}.")
        values = {key: given.get(key, each.default) for key, each in self.parameters.items()}
        for key, value in values.items():
            if value is None:
                raise InputError(
                    f"the question {name} needs {key}: {self.parameters[key].meaning}. Give it "
                    f"with --param {key}=..."
                )
        return {key: value for key, value in values.items() if value is not None}


_CALL: Final = Parameter("the call's id")
_LIMIT: Final = Parameter("how many rows at most", "20")

QUESTIONS: Final[dict[str, Question]] = {
    # Who, and when.
    "actors": Question(
        "Who asked, how often, from when until when, and how much of it was refused?",
        """
select actor, count(*) as calls, count(*) filter (verdict = 'block') as refused,
  min(started_at) as first, max(started_at) as last
from calls group by actor order by calls desc, actor
""",
    ),
    "calls_of_actor": Question(
        "What did somebody ask, when, and what came of it?",
        """
select call_id, started_at, operation, coalesce(verdict, status) as outcome, input_text, output_text
from calls where actor = $actor order by sequence
""",
        {"actor": Parameter("who asked, as the application named them")},
    ),
    "calls_by_day": Question(
        "How many calls were there on each day, refused and unfinished ones?",
        """
select started_at::date as day, count(*) as calls, count(*) filter (verdict = 'block') as refused,
  count(*) filter (status = 'unfinished') as unfinished
from calls group by day order by day
""",
    ),
    "conversation": Question(
        "What was said in a session, call by call?",
        """
select call_id, started_at, actor, input_text, output_text, coalesce(verdict, status) as outcome
from calls where session = $session order by sequence
""",
        {"session": Parameter("the session's id")},
    ),
    "hosts": Question(
        "Which hosts and processes recorded calls, and how many of them were left unfinished?",
        """
select host, process, count(*) as calls, count(*) filter (status = 'unfinished') as unfinished,
  min(started_at) as first, max(started_at) as last
from calls group by host, process order by host, process
""",
    ),
    # One call.
    "timeline": Question(
        "What happened in a call, step by step?", "\nfrom timeline($call)\n", {"call": _CALL}
    ),
    "why": Question(
        "Which checks objected in a call, and with what reason?",
        """
select stage, check_id, plugin, target, verdict, reason, score, labels, failure
from decisions where call_id = $call and not shadow and (verdict <> 'allow' or failure is not null)
order by sequence
""",
        {"call": _CALL},
    ),
    "policy_text": Question(
        "By which policy, as it was written, was a call judged?",
        """
select c.policy_name, c.policy_digest, p.json as policy
from calls c join payloads p on p.call_id = c.call_id and p.name = 'policy'
where c.call_id = $call
""",
        {"call": _CALL},
    ),
    "how_generated": Question(
        "Which model answered in a call, with which settings, and on what evidence?",
        """
select sequence, purpose, provider, model, model_digest, numerics_version, deterministic,
  temperature, top_p, top_k, seed, max_tokens, finish_reason, output_tokens, chain
from generations where call_id = $call order by sequence
""",
        {"call": _CALL},
    ),
    "what_judged": Question(
        "Which code judged a call: packages, versions, digests of code and settings?",
        """
select check_id, plugin, package, version, code, code_partial, settings, stages
from checks where call_id = $call order by position
""",
        {"call": _CALL},
    ),
    # Two runs.
    "first_divergence": Question(
        "Which event, and which token, first differed between two runs?",
        "\nfrom first_divergence($a, $b)\n",
        {"a": Parameter("the one call's id"), "b": Parameter("the other call's id")},
    ),
    "tokens_beside": Question(
        "Which tokens did two runs draw, side by side?",
        "\nfrom tokens_beside($a, $b)\n",
        {"a": Parameter("the one call's id"), "b": Parameter("the other call's id")},
    ),
    "unrepeatable": Question(
        "Which equal requests to a model that promises the same bits got other ones?",
        """
select model_digest, seed, prompt, count(*) as runs,
  arg_min(call_id, chain) as a, arg_max(call_id, chain) as b
from generations
where deterministic and backend is null and prompt is not null and chain is not null
group by model_digest, numerics, seed, prompt, temperature, top_p, top_k, min_p,
  repetition_penalty, max_tokens, stop, candidate
having min(chain) <> max(chain) order by runs desc, prompt
""",
    ),
    # Policies.
    "policy_versions": Question(
        "Which versions of a policy judged, from when until when, and how many calls?",
        """
select policy_name, policy_digest, count(*) as calls, min(started_at) as first,
  max(started_at) as last
from calls group by policy_name, policy_digest order by first, policy_digest
""",
    ),
    "verdicts_by_policy": Question(
        "How often did each version of a policy come to each verdict?",
        "\nfrom verdicts_by_policy()\n",
    ),
    "refusals_by_policy": Question(
        "How much did each version of a policy refuse?",
        """
select policy_name, policy_digest, count(*) as calls,
  count(*) filter (verdict = 'block') as refused,
  round(count(*) filter (verdict = 'block') / count(*), 4) as share
from calls where status = 'complete' group by policy_name, policy_digest
order by share desc, policy_digest
""",
    ),
    # Checks.
    "refusals_by_check": Question(
        "Which check refused how often?",
        """
select check_id, count(*) as refusals
from decisions where verdict = 'block' and not shadow
group by check_id order by refusals desc, check_id
""",
    ),
    "check_versions": Question(
        "Which versions of each check judged, and since which record?",
        """
select check_id, plugin, package, version, code, settings, count(*) as calls,
  min(record) as first_record
from checks group by check_id, plugin, package, version, code, settings
order by check_id, first_record
""",
    ),
    "changed_checks": Question(
        "Which checks changed, in code or settings, while their version stayed the same?",
        """
select check_id, package, version, count(distinct code) as codes,
  count(distinct settings) as settings
from checks group by check_id, package, version
having count(distinct code) > 1 or count(distinct settings) > 1 order by check_id
""",
    ),
    "silent_checks": Question(
        "Which checks were asked and never said anything but allow?",
        """
select check_id, count(*) as asked
from decisions group by check_id
having count(*) filter (verdict <> 'allow' or failure is not null) = 0 order by check_id
""",
    ),
    "failed_checks": Question(
        "Which checks failed, how, and what became of it?",
        """
select check_id, failure, error, verdict as became, count(*) as times
from decisions where failure is not null
group by check_id, failure, error, verdict order by times desc, check_id, failure
""",
    ),
    "slowest_checks": Question(
        "Which checks take longest?",
        """
select check_id, stage, count(*) as asked, median(duration_ms) as median_ms,
  quantile_cont(duration_ms, 0.99) as p99_ms, max(duration_ms) as max_ms
from decisions group by check_id, stage order by median_ms desc, check_id, stage
limit $limit::bigint
""",
        {"limit": _LIMIT},
    ),
    "trials": Question(
        "What would checks on trial have done, had they counted?",
        """
select check_id, verdict, count(*) as times
from decisions where shadow and verdict is not null
group by check_id, verdict order by check_id, verdict
""",
    ),
    "replaced": Question(
        "What was redacted or rewritten, by which check?",
        """
select min(record) as record, call_id, stage, check_id, target, count(*) as times,
  arg_min(before, sequence) as before, arg_max(after, sequence) as after
from events where verdict = 'replace' and not shadow
group by call_id, stage, check_id, target order by record, target limit $limit::bigint
""",
        {"limit": _LIMIT},
    ),
    "principles": Question(
        "How well were the principles of constitutions kept, and where worst?",
        """
select principle, count(*) as judged, avg(score) as mean, min(score) as worst,
  arg_min(call_id, score) as worst_call
from critiques where not shadow group by principle order by mean, principle
""",
    ),
    # People.
    "overrides": Question(
        "How often was a check that asked a person overridden?",
        """
with asked as (
  select check_id, call_id from decisions
  where verdict = 'ask_human' and not shadow group by all
), decided as (
  select call_id, any_value(decision) as decision from events where type = 'decided'
  group by call_id
), said as (
  select coalesce(c.resumes, d.call_id) as call_id, any_value(d.decision) as decision
  from decided d left join calls c on c.call_id = d.call_id group by all
)
select check_id, count(*) as asked, count(*) filter (decision = 'approve') as approved,
  count(*) filter (decision = 'edit') as edited, count(*) filter (decision = 'reject') as rejected,
  count(*) filter (decision is null) as undecided
from asked left join said using (call_id) group by check_id order by asked desc, check_id
""",
    ),
    "deciders": Question(
        "Which people decided, what, and how often?",
        """
select decided_by, decision, count(*) as times, min(call_id) as for_example
from events where type = 'decided' group by decided_by, decision order by decided_by, decision
""",
    ),
    "waiting": Question(
        "Which calls still wait for a person?",
        """
with asking as (
  select call_id, started_at, actor, resumes, token, sequence from calls
  where token is not null or resumes is not null
), asked as (
  select call_id, check_id, reason from decisions
  where verdict = 'ask_human' and not shadow group by all
)
select call_id, started_at, actor, check_id, reason
from asking left join asked using (call_id)
where token is not null
  and call_id not in (select resumes from asking where resumes is not null)
order by sequence
""",
    ),
    # Data.
    "subject_data": Question(
        "What does a subject's data appear in?",
        """
with theirs as (
  select sequence as record, kind from records
  where call_id in (select call_id from calls where subject = $subject)
)
select p.record, p.call_id, t.kind, p.name, p.content
from theirs t join payloads p on p.record = t.record
order by p.record, p.position
""",
        {"subject": Parameter("whose data it is")},
    ),
    "mentions": Question(
        "Which payloads hold a text?",
        """
select record, call_id, name from payloads where contains(json, $text)
order by record, position limit $limit::bigint
""",
        {"text": Parameter("what to look for, as it stands in JSON"), "limit": _LIMIT},
    ),
    "erasures": Question(
        "What was erased, when, by whom, and why; and which erasures did not come to their end?",
        """
select recorded_at, what, target, erased_by, reason,
  done or (what, target) in (select (what, target) from tombstones where done) as complete
from tombstones order by record
""",
    ),
    "masked": Question(
        "From which payloads was something taken before they were recorded?",
        """
select payload, pointer, count(*) as times, count(distinct call_id) as calls
from masked group by payload, pointer order by times desc, payload, pointer
""",
    ),
    # What went wrong.
    "unfinished": Question(
        "Which calls have no result: killed, or still running?",
        """
select call_id, started_at, host, process, actor, model, segments
from calls where status = 'unfinished' order by sequence
""",
    ),
    "released_before_kill": Question(
        "What had left as a stream before its process was killed?",
        """
select call_id, count(*) as segments, max(released_at) as last_released,
  string_agg(text, '' order by number) as released
from segments where call_id in (select call_id from calls where status = 'unfinished')
group by call_id order by min(record)
""",
    ),
    "gaps": Question(
        "When were calls not recorded, how many, and why?",
        """
select since, until, host, process, entries, calls, unnamed, reason from gaps order by record
""",
    ),
    "lost_calls": Question(
        "Which calls lost records in a gap, and of which kind?",
        """
select g.record, e.key as call_id, e.value as lost from gaps g, json_each(g.lost) e
order by g.record, e.key
""",
    ),
    "damaged": Question(
        "Which records can't be trusted, and why?",
        "\nselect sequence, call_id, problem from damaged order by sequence\n",
    ),
    "errors": Question(
        "Which errors ended calls, and how often?",
        """
select error, any_value(error_message) as for_example, count(*) as calls,
  max(started_at) as last
from calls where error is not null group by error order by calls desc, error
""",
    ),
    "unjudged": Question(
        "Which answers were released although a stage had no check that said anything?",
        """
select min(record) as record, call_id, stage, count(*) as times
from events where type = 'unjudged' group by call_id, stage order by record limit $limit::bigint
""",
        {"limit": _LIMIT},
    ),
    "clock_went_back": Question(
        "Where did a host's clock go back between two calls?",
        """
select host, call_id, started_at, before from (
  select host, call_id, sequence, started_at,
    lag(started_at) over (partition by host order by sequence) as before from calls
) where started_at < before order by sequence limit $limit::bigint
""",
        {"limit": _LIMIT},
    ),
    # Providers, cost and speed.
    "models": Question(
        "Which models answered, in which version of weights and numerics?",
        """
select provider, model, model_digest, numerics_version, deterministic, count(*) as generations
from generations group by all order by generations desc, provider, model
""",
    ),
    "usage": Question(
        "How many tokens did each model take and give?",
        """
select provider, model, count(*) as calls, sum(input_tokens)::bigint as input_tokens,
  sum(output_tokens)::bigint as output_tokens
from calls group by provider, model order by output_tokens desc nulls last, model
""",
    ),
    "retries_by_provider": Question(
        "How often did each provider have to be asked again, and how long was waited?",
        """
select provider, coalesce(backend, '') as backend, count(*) as attempts,
  count(*) filter (outcome <> 'ok') as failed, sum(wait_ms) as waited_ms
from attempts group by all order by failed desc, provider, backend
""",
    ),
    "outcomes_by_provider": Question(
        "What came of attempts at each provider?",
        """
select provider, outcome, status, count(*) as attempts, max(duration_ms) as slowest_ms
from attempts group by all order by provider, attempts desc, outcome
""",
    ),
    "slowest_calls": Question(
        "Which calls took longest?",
        """
select call_id, started_at, model, duration_ms, rounds, output_tokens
from calls where duration_ms is not null order by duration_ms desc, sequence
limit $limit::bigint
""",
        {"limit": _LIMIT},
    ),
    "first_word": Question(
        "How long do readers of streams wait for the first piece?",
        """
select model, count(*) as streams, median(first_released_ms) as median_ms,
  quantile_cont(first_released_ms, 0.99) as p99_ms
from calls where first_released_ms is not null group by model order by model
""",
    ),
    "stalled": Question(
        "In which streams did a check miss its deadline?",
        """
select call_id, started_at, stalled from calls where stalled is not null order by sequence
limit $limit::bigint
""",
        {"limit": _LIMIT},
    ),
}
"""By name."""


def question(name: str) -> Question:
    """Return a question by its name.

    Raises:
        InputError: there is none; names the nearest.
    """
    if name not in QUESTIONS:
        near = difflib.get_close_matches(name, QUESTIONS, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise InputError(
            f"there is no question {name!r}.{hint} `isonomy sql --questions` lists them."
        )
    return QUESTIONS[name]


def document() -> str:
    """Return QUESTIONS.md."""
    parts = [_HEAD]
    for name, each in QUESTIONS.items():
        parts.append(f"## {name}\n\n{each.asks}\n")
        for key, parameter in each.parameters.items():
            default = "" if parameter.default is None else f"; {parameter.default} unless given"
            parts.append(f"- `{key}`: {parameter.meaning}{default}")
        if each.parameters:
            parts.append("")
        parts.append(f"```sql\n{each.sql.strip()}\n```\n")
    return "\n".join(parts)


_HEAD: Final = """# Questions to a log

<!-- Written by `python -m isonomy.replay.questions`; edit questions.py. -->

Each is asked by its name, or by its SQL, which runs in any DuckDB client that has `audit.duckdb`
open:

```sh
isonomy sql --questions
isonomy sql --question refusals_by_policy
isonomy sql --question slowest_checks --param limit=5
```

In Python, `ReplayLog.ask("slowest_checks", limit=5)`.
"""


if __name__ == "__main__":
    sys.stdout.write(document())
