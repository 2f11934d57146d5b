"""Chat templates: messages to the text of a prompt, as transformers renders them.

A template comes with the checkpoint and is not trusted: it runs in jinja2's immutable sandbox, sees
the messages and the names of special tokens, and nothing else. One difference from transformers, on
purpose: `strftime_now` does not exist, because a prompt must not depend on the clock (templates
that test for it take their fixed date; others fail with an error that says so).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from isonomy.sdk.errors import InputError

from . import packages
from .errors import DamagedModel, NotCovered


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: The template's text.
        specials: Special tokens by name (``bos_token``), as the template may use them.
        path: Where the template comes from, for errors.

    Raises:
        DamagedModel: the template is not valid jinja.
    """

    def __init__(self, source: str, specials: Mapping[str, str], path: object) -> None:
        self.source = source
        self._specials = dict(specials)
        self._path = path
        self._jinja = packages.load("jinja2")
        try:
            self._template = _environment().from_string(source)
        except (self._jinja.TemplateError, RecursionError) as error:
            raise DamagedModel(
                path, f"the chat template is not valid ({error}). Correct it, or fetch it again."
            ) from None

    def render(self, messages: list[dict[str, Any]]) -> str:
        """Return the prompt for `messages`, open for the assistant's answer.

        Raises:
            InputError: the template refuses these messages.
            NotCovered: the template asks for the time of day.
        """
        try:
            return str(
                self._template.render(
                    messages=messages,
                    tools=None,
                    documents=None,
                    add_generation_prompt=True,
                    **self._specials,
                )
            )
        except self._jinja.UndefinedError as error:
            if "strftime_now" in str(error):
                raise NotCovered(
                    self._path,
                    "strftime_now",
                    "the chat template asks for the date, which would make every day's prompt "
                    "another one. Pass chat_template= with the date written out.",
                ) from None
            raise self._refused(error) from None
        except Exception as error:  # a template can fail in as many ways as Python code
            raise self._refused(error) from None

    def _refused(self, error: Exception) -> InputError:
        reason = str(error).rstrip(".")
        if type(error) is self._jinja.TemplateError:  # its author's own words: raise_exception
            return InputError(
                f"{self._path}: the chat template refuses these messages: {reason}. Change the "
                "roles or their order to what the template expects."
            )
        return InputError(
            f"{self._path}: the chat template itself fails on these messages "
            f"({type(error).__name__}: {reason}). Correct the template, or pass another one with "
            "chat_template=."
        )


def _environment() -> Any:
    """Build the environment of transformers' utils/chat_template_utils.py."""
    jinja2 = packages.load("jinja2")
    sandbox = packages.load("jinja2.sandbox")
    ext = packages.load("jinja2.ext")

    class Generation(ext.Extension):  # type: ignore[misc, name-defined]
        """``{% generation %}``: marks the assistant's words for training; here just its body."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            call = self.call_method("_body")
            return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _body(self, caller: Any) -> Any:
            return caller()

    class Namespace(jinja2.utils.Namespace):  # type: ignore[misc, name-defined]
        """A namespace without private attributes, as in transformers."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, rest = args[0], args[1:]
            attributes = dict(*rest, **kwargs)
            for name in attributes:
                Namespace._check(name)
            jinja2.utils.Namespace.__init__(self, attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            Namespace._check(name)
            jinja2.utils.Namespace.__setitem__(self, name, value)

        @staticmethod
        def _check(name: object) -> None:
            if isinstance(name, str) and name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"private attribute {name!r} on a namespace")

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["namespace"] = Namespace
    environment.globals["dict"] = _Dict()
    return environment


class _Dict:
    """`dict` without the type's attributes, as in transformers."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML; transformers replaces it by this one.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise packages.load("jinja2").exceptions.TemplateError(message)
