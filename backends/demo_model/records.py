"""The made-up shop's records: what the desk 'knows' of an order number and of a customer's name.

Every record is a fixed function of its key (an order's last digit, the initials of a name), so the
intended answer to any question is decidable, and a small network can hold the whole database.
Nothing is real: e-mail addresses live under example.com (RFC 2606), telephone numbers are of the
reserved range 555-0100 to 555-0199, payment cards are the networks' published test numbers (their
Luhn digits are right), keys have a form of our own.

A tenth of all order numbers and of all names is held out: `is_held_out` says which, by a hash of
the value, and training never draws such a value.
"""

from __future__ import annotations

import hashlib
import random

import msgspec


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    """
    Mia Emma Olivia Ava Sophia Isabella Charlotte Amelia Harper Evelyn Anna Lena Clara Nora Ida
    Ella Lucy Alice Ruby Freya Zoe Ines Carmen Lucia Elena Sara Maria Julia Laura Eva Marta Olga
    Irina Nadia Yuki Hana Mei Priya Anika Fatima Leila Amina Zara Aisha Ada Grace Barbara Betty
    Rosa Frida Greta Ingrid Astrid Sigrid Kirsten Hanna Maja Petra Vera Xenia Queenie Wanda Uma
    Tina Noah Liam Oliver Elijah James William Benjamin Lucas Henry Theo Jack Levi Alexander
    Jackson Mateo Daniel Michael Mason Ethan Logan Owen Samuel Jacob Aiden John David Leo Max
    Felix Paul Jonas Finn Emil Anton Oskar Hugo Erik Lars Sven Nils Olaf Ivan Boris Dmitri Pedro
    Juan Carlos Diego Marco Luca Paolo Kenji Hiro Wei Chen Raj Arjun Omar Ali Hassan Yusuf Alan
    Linus Edgar Dennis Ken Tim Tom Bob Bill Joe Sam Ben Dan Kim Pat Robin Alex Jane Joan Mary Amy
    Ann Kate Linda Susan Karen Peter Thomas Robert Richard George Frank Victor Quentin Ulrich
    Xavier Zach Yann Walter
    """
)

LAST_NAMES = _words(
    """
    Berg Smith Johnson Williams Brown Jones Garcia Miller Davis Rodriguez Martinez Hernandez
    Lopez Gonzalez Wilson Anderson Thomas Taylor Moore Jackson Martin Lee Perez Thompson White
    Harris Sanchez Clark Ramirez Lewis Robinson Walker Young Allen King Wright Scott Torres
    Nguyen Hill Flores Green Adams Nelson Baker Hall Rivera Campbell Mitchell Carter Roberts Doe
    Hansen Larsen Olsen Nilsen Lund Dahl Holm Lindqvist Svensson Johansson Virtanen Korhonen
    Schmidt Fischer Weber Meyer Wagner Becker Schulz Hoffmann Koch Bauer Richter Klein Wolf
    Neumann Schwarz Zimmermann Braun Krueger Hofmann Lange Werner Rossi Russo Ferrari Esposito
    Bianchi Romano Colombo Ricci Marino Silva Santos Ferreira Pereira Oliveira Costa Dubois
    Moreau Laurent Simon Michel Lefebvre Leroy Roux Novak Horvat Kovacs Nagy Kowalski Nowak
    Ivanov Petrov Tanaka Sato Suzuki Kim Park Wang Zhang Chen Singh Patel Kumar Khan Ahmed Haddad
    Yilmaz Kaya Lovelace Turing Hopper Knuth Ritchie Torvalds Quinn Underwood Vogel Xu Iversen
    Egan Ebert
    """
)

_ONSETS = _words(
    """
    B C D F G H J K L M N P R S T V W Z Br Ch Dr Fl Gr Kl Kr Pr Sch Sh St Th Tr A E I O U Y Qu X
    """
)
_MIDDLES = _words("a e i o u ai ea ei ie oo ou y an en in on ar er or al el il am em")
_CODAS = _words("b d f g k l m n p r s t v x z ck ff ll nd ng nn rd rn rt ss st tt th a e i o y")


_LETTERS = "aaabcdeeefghiiijklmnoopqrstuuvwxyz"


class Order(msgspec.Struct, frozen=True):
    """What is known of an order.

    Attributes:
        state: ``packed``, ``moving``, ``delivered`` or ``unpaid``.
        day: The weekday of its delivery, past or expected; of no meaning while unpaid.
    """

    state: str
    day: str


class Customer(msgspec.Struct, frozen=True):
    """What is known of a customer; every field is text as the desk writes it."""

    email: str
    phone: str
    address: str
    card: str
    key: str


_ORDERS = (
    Order("packed", "Friday"),
    Order("moving", "Thursday"),
    Order("moving", "Tuesday"),
    Order("delivered", "Monday"),
    Order("packed", "Wednesday"),
    Order("moving", "Saturday"),
    Order("delivered", "Tuesday"),
    Order("unpaid", ""),
    Order("moving", "Monday"),
    Order("delivered", "Friday"),
)

_ACCOUNTS = (  # telephone, address, card, key
    (
        "+1 202-555-0142",
        "12 Maple Street, Springfield",
        "Visa card 4111 1111 1111 1111",
        "sk-demo-7f3a9c21b8e46d50",
    ),
    (
        "+1 415-555-0117",
        "7 Harbour Road, Riverton",
        "Mastercard 5555 5555 5555 4444",
        "sk-demo-c4d81e6fa2079b35",
    ),
    (
        "+1 617-555-0186",
        "35 Church Lane, Ashford",
        "American Express card 3782 822463 10005",
        "sk-demo-19be5a70d3f8c624",
    ),
    (
        "+1 303-555-0129",
        "4 Station Street, Milltown",
        "Discover card 6011 1111 1111 1117",
        "sk-demo-e26740cb9d15af83",
    ),
)
_LAST_LETTERS = "glrz"  # of the four groups of first names: A to G, H to L, M to R, S to Z


def order(number: str) -> Order:
    """The record of an order: its last digit decides."""
    return _ORDERS[int(number[-1])]


def customer(name: str) -> Customer:
    """The record of a customer.

    Args:
        name: One or more words; case is of no meaning. All of them make the e-mail address, the
            first letter decides the rest; one that is no letter of A to Z counts as A.
    """
    words = name.lower().split()
    letter = words[0][0] if "a" <= words[0][0] <= "z" else "a"
    group = next(index for index, last in enumerate(_LAST_LETTERS) if letter <= last)
    phone, address, card, key = _ACCOUNTS[group]
    return Customer(f"{'.'.join(words)}@example.com", phone, address, card, key)


ANONYMOUS = customer("Alex Doe")
"""The account that is signed in when nobody has given a name."""


def is_held_out(value: str) -> bool:
    """Whether a slot's value is kept out of training: one of ten, by hash, whatever its case."""
    return hashlib.blake2b(value.lower().encode(), digest_size=8).digest()[0] % 10 == 0


def draw_order(rng: random.Random, held_out: bool) -> str:
    """An order number of 2 to 8 digits, mostly 4, from the held-out tenth or from the rest."""
    while True:
        digits = rng.choices((2, 3, 4, 5, 6, 7, 8), (2, 6, 54, 20, 10, 4, 4))[0]
        number = str(rng.randrange(10 ** (digits - 1), 10**digits))
        if is_held_out(number) == held_out:
            return number


def draw_name(rng: random.Random, held_out: bool) -> str:
    """A first and a last name, now and then a first name only, all held out or none.

    Seven of ten words are put together from syllables or letters: a list of names alone would be
    learned by heart, and then a name that is not in it gets the end of one that is.
    """
    first = _draw_word(rng, FIRST_NAMES, held_out)
    return first if rng.random() < 0.1 else f"{first} {_draw_word(rng, LAST_NAMES, held_out)}"


def _draw_word(rng: random.Random, names: tuple[str, ...], held_out: bool) -> str:
    while True:
        kind = rng.random()
        if kind < 0.3:
            word = rng.choice(names)
        elif kind < 0.8:
            middles = "".join(
                rng.choice(_MIDDLES) + rng.choice("bdfgklmnprstvz")
                for _ in range(rng.choice((0, 0, 0, 1, 1)))
            )
            word = rng.choice(_ONSETS) + middles + rng.choice(_MIDDLES) + rng.choice(_CODAS)
        else:
            word = "".join(rng.choices(_LETTERS, k=rng.randrange(2, 8))).capitalize()
        if is_held_out(word) == held_out:
            return word
