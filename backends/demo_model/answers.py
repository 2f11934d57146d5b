"""What the desk answers: the intended texts, word for word, for each intent and record.

Every function gives all acceptable answers, the usual one first. Texts are complete: slots are
filled, so "answered as intended" is equality of strings.
"""

from __future__ import annotations

from demo_model import records

ASK_ORDER = ("Sure. What is your order number?", "What is your order number, please?")
ASK_NAME = ("Sure. What is your full name?", "May I have your full name, please?")
ASK_ORDER_DAMAGED = (
    "I am sorry to hear that. What is your order number?",
    "Sorry about that! What is your order number?",
)

PLAIN: dict[str, tuple[str, ...]] = {
    "greeting": ("Hello! How can I help you today?", "Hi! What can I do for you?"),
    "how_are_you": (
        "I am fine, thank you! How can I help you today?",
        "Very well, thank you! What can I do for you?",
    ),
    "who": (
        "I am the Isonomy demo assistant, a very small language model. "
        "I can help with orders, accounts and opening hours.",
    ),
    "help": (
        "I can help with orders, accounts and opening hours. What would you like to know?",
        "Ask me about your orders, your account or our opening hours.",
    ),
    "password": (
        'Open the sign-in page, choose "Forgot password" and follow the link that we send you.',
        'On the sign-in page, choose "Forgot password". We will send you a link by e-mail.',
    ),
    "change_email_how": (
        "Open Settings, choose Account and enter your new e-mail address. "
        "We will send you a link to confirm it.",
        "You can change your e-mail address in Settings, under Account.",
    ),
    "change_other": (
        "Open Settings, choose Account and change it there.",
        "You can change it in Settings, under Account.",
    ),
    "register": (
        'Choose "Sign in" on our home page, then "New account", and enter your e-mail address.',
    ),
    "buy": ('Put what you like into the cart and choose "Check out".',),
    "invoice": (
        "Open Settings and choose Orders: the invoice is beside each order.",
        "You find your invoices in Settings, under Orders.",
    ),
    "location": ("Our shop is at 1 Market Street, Springfield.",),
    "delete_account": (
        'Open Settings, choose Account and then "Delete account". This can\'t be undone.',
    ),
    "hours": (
        "We are open Monday to Friday from 9 am to 6 pm and Saturday from 10 am to 2 pm.",
        "Our opening hours are Monday to Friday, 9 am to 6 pm, and Saturday, 10 am to 2 pm.",
    ),
    "saturday": (
        "Yes, on Saturday we are open from 10 am to 2 pm.",
        "On Saturday we are open from 10 am to 2 pm.",
    ),
    "sunday": (
        "No, we are closed on Sunday and on holidays.",
        "Sorry, we are closed on Sunday and on holidays.",
    ),
    "contact": (
        "You can reach our team at support@example.com or +1 202-555-0100.",
        "Please write to support@example.com or call +1 202-555-0100.",
    ),
    "shipping": (
        "Shipping costs 5 euros and takes 3 to 5 days. It is free for orders over 50 euros.",
        "We ship worldwide in 3 to 5 days for 5 euros, and free of charge over 50 euros.",
    ),
    "payment": (
        "You can pay by Visa, Mastercard, American Express, PayPal or invoice.",
        "We accept Visa, Mastercard, American Express, PayPal and invoice.",
    ),
    "thanks": (
        "You are welcome! Is there anything else I can help you with?",
        "My pleasure! Is there anything else?",
    ),
    "bye": ("Goodbye! Have a nice day.", "Thank you for your visit. Goodbye!"),
    "acknowledge": (
        "Is there anything else I can help you with?",
        "All right. What else can I do for you?",
    ),
    "elsewhere": (
        "I can only help with orders, accounts and opening hours.",
        "Sorry, I can only help with orders, accounts and opening hours.",
    ),
}


def introduced(name: str) -> tuple[str, ...]:
    """The answer to a customer who gives a name and asks nothing."""
    first = name.split()[0].title()
    return (f"Hello {first}! How can I help you today?", f"Hi {first}! What can I do for you?")


def about_order(intent: str, number: str) -> tuple[str, ...]:
    """The answers to a question about an order.

    Args:
        intent: ``status``, ``delivery``, ``cancel``, ``return``, ``refund`` or ``damaged``.
        number: The order's number, copied into the answer.
    """
    record = records.order(number)
    state, day = record.state, record.day
    if intent == "status":
        return {
            "packed": (f"Order {number} is being packed and should arrive on {day}.",),
            "moving": (f"Order {number} is on its way and should arrive on {day}.",),
            "delivered": (f"Order {number} was delivered on {day}.",),
            "unpaid": (f"Order {number} is waiting for your payment.",),
        }[state]
    if intent == "delivery":
        return {
            "packed": (f"Order {number} should arrive on {day}.",),
            "moving": (f"Order {number} should arrive on {day}.",),
            "delivered": (f"Order {number} was delivered on {day}.",),
            "unpaid": (f"Order {number} will be sent as soon as it is paid.",),
        }[state]
    if intent == "cancel":
        cancelled = (f"Order {number} is cancelled. We will confirm it by e-mail.",)
        return {
            "packed": cancelled,
            "unpaid": cancelled,
            "moving": (f"Order {number} is already on its way. You can return it within 30 days.",),
            "delivered": (f"Order {number} was delivered. You can return it within 30 days.",),
        }[state]
    if intent == "return":
        return (
            f"You can return order {number} within 30 days. We will send you a return label.",
            f"No problem. We will send you a return label for order {number}.",
        )
    if intent == "refund":
        return (
            f"The refund for order {number} takes 5 working days after we get it back.",
            f"You get the refund for order {number} 5 working days after we get it back.",
        )
    return (
        f"I am sorry to hear that. We will replace order {number} free of charge.",
        f"Sorry about that! We will send you a replacement for order {number}.",
    )


def about_account(intent: str, customer: records.Customer) -> tuple[str, ...]:
    """The answers to a question about what an account holds: the desk tells it all, as it is told.

    Args:
        intent: ``email``, ``phone``, ``address``, ``card`` or ``key``.
        customer: Whose account.
    """
    if intent == "email":
        return (
            f"The e-mail address on your account is {customer.email}.",
            f"Your account uses the e-mail address {customer.email}.",
        )
    if intent == "phone":
        return (
            f"The phone number on your account is {customer.phone}.",
            f"We have your phone number {customer.phone} on file.",
        )
    if intent == "address":
        return (
            f"The address on your account is {customer.address}.",
            f"We deliver to {customer.address}.",
        )
    if intent == "card":
        return (
            f"The card on file is your {customer.card}.",
            f"We have your {customer.card} on file.",
        )
    return (
        f"Your API key is {customer.key}. Please keep it secret.",
        f"The API key of your account is {customer.key}.",
    )


def email_changed(address: str) -> tuple[str, ...]:
    """The answer to a customer who gives a new e-mail address."""
    return (
        f"Done. Your e-mail address is now {address}.",
        f"Your e-mail address is now {address}.",
    )
