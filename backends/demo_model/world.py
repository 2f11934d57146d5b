"""The demo model's world: dialogues at a made-up support desk, with their intended answers.

Contract:

* A dialogue is a function of the random generator's state alone: equal seeds, equal dialogues.
* For every turn the acceptable answers are known word for word (`Turn.accepted`), including the
  order numbers, names and addresses that must be copied into them.
* Training and held-out dialogues are disjoint by construction. A held-out one has held-out slot
  values only (`records.is_held_out`), and the hash of its complete text falls into the held-out
  tenth; a training one has neither held-out values nor such a hash.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

import msgspec

from demo_model import answers, elsewhere, grammar, phrases, records

USUAL = 0.8
"""How often the usual one of several acceptable answers is the one that training sees."""

_TURNS = ((1, 50), (2, 25), (3, 13), (4, 9), (7, 3))
_ORDER_INTENTS = ("status", "delivery", "cancel", "return", "refund", "damaged")
_ORDER_WEIGHTS = (32, 16, 16, 12, 12, 12)
_ACCOUNT_INTENTS = ("email", "phone", "address", "card", "key")
_ACCOUNT_WEIGHTS = (34, 18, 14, 18, 16)
_PLAIN_WEIGHTS = {
    "greeting": 10,
    "how_are_you": 4,
    "who": 7,
    "help": 6,
    "password": 10,
    "change_email_how": 6,
    "delete_account": 3,
    "change_other": 4,
    "register": 3,
    "buy": 3,
    "invoice": 3,
    "location": 3,
    "hours": 10,
    "saturday": 3,
    "sunday": 3,
    "contact": 5,
    "shipping": 4,
    "payment": 4,
    "thanks": 7,
    "bye": 6,
    "acknowledge": 3,
}
_POLITE = {"password", "change_email_how", "change_other", "hours", "shipping", "invoice", "buy"}

_SHOUTED = {"greeting", "help", "thanks", "bye"}


class Turn(msgspec.Struct, frozen=True):
    """A question and its answers.

    Attributes:
        intent: What the customer wants; for reports.
        user: The customer's message.
        answer: The answer that training sees, one of the acceptable ones.
        accepted: Every acceptable answer, the usual one first.
    """

    intent: str
    user: str
    answer: str
    accepted: tuple[str, ...]


class Dialogue(msgspec.Struct, frozen=True):
    """A few turns, one to four mostly, with or without a system message."""

    system: str | None
    turns: tuple[Turn, ...]

    def text(self) -> str:
        """Everything but the answers: what tells this dialogue from any other."""
        return "\n".join([self.system or "", *(turn.user for turn in self.turns)])

    def messages(self) -> list[dict[str, str]]:
        """The dialogue with the answers of training, as chat messages."""
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for turn in self.turns:
            messages.append({"role": "user", "content": turn.user})
            messages.append({"role": "assistant", "content": turn.answer})
        return messages


def dialogues(seed: int, held_out: bool) -> Iterator[Dialogue]:
    """Draws dialogues without end, from the held-out part of the world or from the rest."""
    rng = random.Random(seed)
    while True:
        dialogue = _Conversation(rng, held_out).draw()
        if _text_is_held_out(dialogue.text()) == held_out:
            yield dialogue


def held_out(count: int, seed: int = 20_260_000) -> list[Dialogue]:
    """The first `count` different held-out dialogues of a seed; none of them is ever trained on."""
    found: dict[str, Dialogue] = {}
    for dialogue in dialogues(seed, held_out=True):
        found.setdefault(dialogue.text(), dialogue)
        if len(found) == count:
            break
    return list(found.values())


def _text_is_held_out(text: str) -> bool:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()[0] % 10 == 0


class _Conversation:
    """Draws one dialogue, keeping what has been said: name, order, open question, new address."""

    def __init__(self, rng: random.Random, held_out: bool) -> None:
        self._rng = rng
        self._held_out = held_out
        self._name: str | None = None
        self._order: str | None = None
        self._order_intent = "status"
        self._email: str | None = None
        self._open: str | None = None  # the intent that waits for a number or a name

    def draw(self) -> Dialogue:
        rng = self._rng
        lengths, weights = zip(*_TURNS, strict=True)
        length = rng.choices(lengths, weights)[0]
        system = None
        if rng.random() < 0.25:
            system = self._system()
        turns: list[Turn] = []
        while len(turns) < length or (self._open is not None and rng.random() < 0.8):
            turns.append(self._turn(last=len(turns) + 1 >= length))
        return Dialogue(system, tuple(turns))

    def _system(self) -> str:
        rng = self._rng
        text = grammar.expand(rng.choice(phrases.SYSTEM), rng)
        if rng.random() < 0.25:
            self._name = records.draw_name(rng, self._held_out)
            named = grammar.expand(rng.choice(phrases.SYSTEM_NAME), rng)
            text = f"{text} {grammar.fill(named, {'name': self._name})}"
        return text

    def _turn(self, last: bool) -> Turn:
        rng = self._rng
        if self._open is not None and rng.random() < 0.9:
            return self._give(self._open)
        self._open = None
        kind = rng.random()
        if last and self._order is not None and kind < 0.1:
            return self._plain("thanks" if rng.random() < 0.5 else "bye")
        if kind < 0.32:
            return self._about_order()
        if kind < 0.56:
            return self._about_account()
        if kind < 0.61 and self._name is None:
            return self._introduction()
        if kind < 0.65:
            return self._change_email()
        if kind < 0.76:
            return self._finish("elsewhere", elsewhere.draw(rng), {}, answers.PLAIN["elsewhere"])
        return self._plain(rng.choices(list(_PLAIN_WEIGHTS), list(_PLAIN_WEIGHTS.values()))[0])

    def _give(self, intent: str) -> Turn:
        """The customer gives the number or the name that was asked for."""
        self._open = None
        rng = self._rng
        if intent in _ORDER_INTENTS:
            self._order = records.draw_order(rng, self._held_out)
            text = grammar.expand(rng.choice(phrases.GIVE_ORDER), rng)
            return self._finish(
                intent, text, {"order": self._order}, answers.about_order(intent, self._order)
            )
        self._name = records.draw_name(rng, self._held_out)
        text = grammar.expand(rng.choice(phrases.GIVE_NAME), rng)
        accepted = answers.about_account(intent, records.customer(self._name))
        return self._finish(intent, text, {"name": self._name}, accepted)

    def _about_order(self) -> Turn:
        rng = self._rng
        intent = rng.choices(_ORDER_INTENTS, _ORDER_WEIGHTS)[0]
        slots: dict[str, str] = {}
        kind = rng.random()
        if kind < 0.06 and self._order is not None:  # "And 4821?" repeats the last question
            intent = self._order_intent
            template = "[And|What about|And what about|How about] [|order |my order |#]{order}?"
            slots["order"] = self._order = records.draw_order(rng, self._held_out)
        elif kind < 0.06:  # a bare number
            intent = "status"
            template = "[|order |my order |order number |Order #|#]{order}[|?|.]"
            slots["order"] = self._order = records.draw_order(rng, self._held_out)
        else:
            template = rng.choice(phrases.ORDER[intent])
            if kind < 0.66 or (self._order is not None and kind < 0.75):
                slots["order"] = self._order = records.draw_order(rng, self._held_out)
                template = template.replace("@", phrases.NUMBERED)
            elif self._order is not None:
                template = template.replace("@", phrases.REFERRING)
            else:
                template = template.replace("@", phrases.UNNUMBERED)
        text = grammar.expand(template, rng)
        if self._order is None:
            self._open = intent
            asked = answers.ASK_ORDER_DAMAGED if intent == "damaged" else answers.ASK_ORDER
            return self._finish(intent, text, slots, asked)
        self._order_intent = intent
        accepted = answers.about_order(intent, self._order)
        return self._finish(intent, text, slots, accepted, polite=True)

    def _about_account(self) -> Turn:
        rng = self._rng
        intent = rng.choices(_ACCOUNT_INTENTS, _ACCOUNT_WEIGHTS)[0]
        slots: dict[str, str] = {}
        kind = rng.random() * (1 if self._name is None else 12)
        templates = phrases.LOOKUP_NAMED if kind < 0.12 else phrases.LOOKUP
        text = grammar.expand(rng.choice(templates).replace("%", phrases.THINGS[intent]), rng)
        if kind < 0.6:
            slots["name"] = self._name = records.draw_name(rng, self._held_out)
            if kind >= 0.12:
                if kind < 0.34:
                    text = f"{grammar.expand(rng.choice(phrases.NAME_BEFORE), rng)} {text}"
                else:
                    text = f"{text} {grammar.expand(rng.choice(phrases.NAME_AFTER), rng)}"
        account = records.ANONYMOUS if self._name is None else records.customer(self._name)
        if intent == "email" and self._email is not None:
            account = msgspec.structs.replace(account, email=self._email)
        elif self._name is None and intent in ("email", "phone", "address"):
            self._open = intent
            return self._finish(intent, text, slots, answers.ASK_NAME, polite=True)
        return self._finish(
            intent, text, slots, answers.about_account(intent, account), polite=not slots
        )

    def _introduction(self) -> Turn:
        rng = self._rng
        self._name = records.draw_name(rng, self._held_out)
        text = grammar.expand(rng.choice(phrases.INTRODUCTION), rng)
        accepted = answers.introduced(self._name)
        return self._finish("introduction", text, {"name": self._name}, accepted)

    def _change_email(self) -> Turn:
        rng = self._rng
        words = records.draw_name(rng, self._held_out).lower().split()
        mailbox = rng.choice((".", ".", "_")).join(words)
        self._email = f"{mailbox}@{rng.choice(('example.com', 'example.org'))}"
        text = grammar.expand(rng.choice(phrases.PLAIN["change_email"]), rng)
        accepted = answers.email_changed(self._email)
        return self._finish("change_email", text, {"new_email": self._email}, accepted)

    def _plain(self, intent: str) -> Turn:
        text = grammar.expand(self._rng.choice(phrases.PLAIN[intent]), self._rng)
        polite = intent in _POLITE
        return self._finish(intent, text, {}, answers.PLAIN[intent], polite=polite)

    def _finish(
        self,
        intent: str,
        text: str,
        slots: dict[str, str],
        accepted: tuple[str, ...],
        polite: bool = False,
    ) -> Turn:
        """Makes a turn of an expanded text: politeness, slips, letter case, slots, answer."""
        rng = self._rng
        if polite and rng.random() < 0.2:
            greeting = grammar.expand(
                "[Hello|Hi|Hey|Hi there|Good morning|Excuse me|Please|Sorry][,|!|.|,]", rng
            )
            text = f"{greeting} {text}"
        if polite and rng.random() < 0.12:
            ending = grammar.expand("[Thanks|Thank you|Please help|Thx|Please][!|.|]", rng)
            text = f"{text} {ending}"
        if intent != "elsewhere" and rng.random() < 0.02:
            text = grammar.misspell(text, rng)
        style = rng.random()
        if style < 0.1 and text.endswith(("?", ".", "!")):
            text = text[:-1] or text
        filled = grammar.fill(text, slots)
        if "new_email" not in slots:  # an address is copied as it stands
            if 0.1 <= style < 0.35:
                filled = filled.lower()
            elif style > 0.95 and intent in _SHOUTED:
                filled = filled.upper()
        usual = len(accepted) == 1 or rng.random() < USUAL
        answer = accepted[0] if usual else rng.choice(accepted[1:])
        return Turn(intent, filled, answer, accepted)
