"""Interchange: calls out of a log, and calls that others recorded into one.

Out: `jsonl` (every call exactly as the log holds it, a JSON object a line), `calls` (the same for
notebooks: what was said and decided), `otel` (OpenTelemetry spans). In: `jsonl` again, and the
traffic that other tools recorded (`openai`, `llm`, `inspect`), which passes the real pipeline with
its recorded answers (`traffic`), so that it can be queried, replayed and judged by other policies.

Exports hold one call at a time in memory, imports one batch and the calls' ids (of a JSON log of
Inspect, all of the file). An import makes a new log, whole or
not at all (`newlog`). What is read from a file is data of strangers: it is checked, names no code,
and what can't be used is told by its line or row.
"""
