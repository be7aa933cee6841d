"""A sentence and the keys asked for -> compact JSON whose values are copied letter by letter."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from sfumato.tasks import words
from sfumato.tasks.base import Example, Split, exact, generator, listed, vary
from sfumato.tasks.dates import MONTHS, WEEKDAYS, random_day

Value = str | int | float
Maker = Callable[[random.Random, Split], Value]


def _between(low: int, high: int) -> Maker:
    return lambda rng, split: rng.randint(low, high)


def _price(rng: random.Random, _split: Split) -> Value:
    return rng.randint(1, 999) if rng.random() < 0.4 else rng.randint(100, 99999) / 100


def day_text(rng: random.Random, split: Split) -> str:
    """A day as an event has it, copied as it stands: ISO, month and day, or a weekday."""
    day = random_day(rng, split, 2000, 2040)
    roll = rng.random()
    if roll < 0.4:
        return day.isoformat()
    month = MONTHS[day.month - 1]
    if roll < 0.6:
        return f"{month} {day.day}"
    if roll < 0.7:
        return f"{day.day} {month}"
    return f"{month} {day.day}, {day.year}" if roll < 0.8 else WEEKDAYS[day.weekday()]


def clock(rng: random.Random, _split: Split) -> str:
    """A time of day: 17:30, sometimes 5 pm or 7:15 am; copied as it stands."""
    minute = rng.choice((0, 0, 15, 30, 45, rng.randrange(60)))
    if rng.random() < 0.7:
        return f"{rng.randrange(24):02}:{minute:02}"
    hour = f"{rng.randint(1, 12)}" + (f":{minute:02}" if minute else "")
    return f"{hour} {rng.choice(('am', 'pm'))}"


def email(rng: random.Random, split: Split) -> str:
    """An address from words of the split."""
    end = rng.choice(("com", "org", "net", "de", "io"))
    return f"{words.word(rng, split)}@{words.word(rng, split)}.{end}"


def _sender(rng: random.Random, split: Split) -> str:
    return email(rng, split) if rng.random() < 0.25 else words.person(rng, split, 0.2)


def _choice(text: str) -> Maker:
    options = listed(text)
    return lambda rng, split: rng.choice(options)


def _phone(rng: random.Random, _split: Split) -> Value:
    return f"555-{rng.randrange(10000):04}" if rng.random() < 0.5 else f"{rng.randrange(10**8):08}"


def _title(rng: random.Random, split: Split) -> Value:
    return words.title(rng, split, 1, 3)


def _phrase(rng: random.Random, split: Split) -> Value:
    return words.phrase(rng, split, 1, 2)


def _first(rng: random.Random, split: Split) -> Value:
    return words.person(rng, split, 0.15)


@dataclass(frozen=True)
class Schema:
    """Keys in their order with a maker each, and sentences that mention all of them."""

    makers: dict[str, Maker]
    sentences: tuple[str, ...]


_CURRENCY = _choice("EUR USD GBP euros dollars pounds yen JPY CHF francs INR rupees")
_JOB = _choice(
    "nurse teacher engineer baker pilot lawyer chef driver plumber designer farmer dentist writer "
    "painter electrician programmer manager doctor carpenter singer gardener librarian chemist"
)
_ANIMAL = _choice("dog cat horse parrot rabbit hamster turtle snake pony goat lizard ferret")
_COLOR = _choice("red blue green black white yellow orange purple brown grey pink silver golden")
_SYMBOLS = {"USD": "$", "EUR": "€", "GBP": "£", "JPY": "¥"}
SCHEMAS = (
    Schema(
        {"name": words.person, "age": _between(1, 99), "city": words.city},
        (
            "{name}, {age}, lives in {city}.",
            "{name} is {age} years old and lives in {city}.",
            "My name is {name}, I am {age} and I live in {city}.",
            "{name} ({age}) from {city}",
            "{name} from {city} is {age}.",
            "In {city} lives {name}, aged {age}.",
            "I'm {name} from {city} and I'm {age} years old.",
            "{name} is a {age}-year-old from {city}.",
            "At {age}, {name} moved to {city}.",
            "{age}-year-old {name} lives in {city}.",
            "Meet {name} from {city}, who just turned {age}.",
            "{name} was born {age} years ago in {city}.",
        ),
    ),
    Schema(
        {"product": _title, "price": _price, "currency": _CURRENCY},
        (
            "The {product} costs {price} {currency}.",
            "{product}: {price} {currency}",
            "I bought a {product} for {price} {currency}.",
            "You can buy the {product} for {price} {currency}.",
            "{product} is on sale for {price} {currency}.",
            "For {price} {currency} you get the {product}.",
            "They sell {product} at {price} {currency}.",
            "The price of the {product} is {price} {currency}.",
            "We paid {price} {currency} for a {product}.",
            "A {product} is {price} {currency}.",
        ),
    ),
    Schema(
        {"event": _title, "date": day_text, "place": words.city},
        (
            "The {event} takes place on {date} in {place}.",
            "{event} on {date} in {place}",
            "Join us for {event} in {place} on {date}.",
            "On {date}, {place} hosts the {event}.",
            "{event} is on {date} at {place}.",
            "The {event} will be held in {place} on {date}.",
            "Come to {place} on {date} for the {event}.",
            "{event}, {place}, {date}",
            "Don't miss the {event} on {date} in {place}!",
            "In {place} there is a {event} on {date}.",
        ),
    ),
    Schema(
        {"from": _sender, "to": _sender, "subject": _title},
        (
            "{from} wrote to {to} about {subject}.",
            "Email from {from} to {to}: {subject}",
            "From {from} to {to}, subject: {subject}",
            "{from} sent {to} an email about {subject}.",
            "{to} got a message from {from} about {subject}.",
            "A letter about {subject} from {from} to {to}",
            "{from} emailed {to} with the subject {subject}.",
            "To {to} from {from}: {subject}",
            "{from} told {to} about {subject}.",
            "Message to {to} about {subject}, sent by {from}.",
        ),
    ),
    Schema(
        {"name": words.person, "job": _JOB, "company": words.company},
        (
            "{name} works as a {job} at {company}.",
            "{name} is a {job} at {company}.",
            "{company} hired {name} as a {job}.",
            "{name}, {job} at {company}",
            "The {job} at {company} is {name}.",
            "As a {job}, {name} works for {company}.",
            "{name} joined {company} as a {job}.",
            "At {company}, {name} is the {job}.",
            "{name} left {company}, where she was a {job}.",
            "Our {job} {name} comes from {company}.",
        ),
    ),
    Schema(
        {"item": _phrase, "quantity": _between(1, 200), "customer": words.person},
        (
            "{customer} ordered {quantity} {item}.",
            "{quantity} {item} for {customer}",
            "Order for {customer}: {quantity} x {item}",
            "{customer} wants {quantity} {item}.",
            "Please send {quantity} {item} to {customer}.",
            "{customer} bought {quantity} {item}.",
            "Ship {quantity} {item} to {customer}.",
            "We sold {quantity} {item} to {customer}.",
            "{customer} needs {quantity} {item} soon.",
            "{quantity} {item} were ordered by {customer}.",
        ),
    ),
    Schema(
        {"from": words.city, "to": words.city, "date": day_text},
        (
            "Flight from {from} to {to} on {date}.",
            "I travel from {from} to {to} on {date}.",
            "A train leaves {from} for {to} on {date}.",
            "On {date} we fly from {from} to {to}.",
            "Book a ticket from {from} to {to} for {date}.",
            "{from} to {to}, {date}",
            "We drive to {to} from {from} on {date}.",
            "The bus goes from {from} to {to} on {date}.",
            "On {date} I leave {from} and go to {to}.",
            "Trip: {from} - {to}, {date}",
        ),
    ),
    Schema(
        {"title": _title, "author": words.person, "year": _between(1800, 2030)},
        (
            "{title} was written by {author} in {year}.",
            "{author} wrote {title} in {year}.",
            "{title} by {author} ({year})",
            "In {year}, {author} published {title}.",
            "The book {title} by {author} came out in {year}.",
            "{author}: {title}, {year}",
            "{title} is a book by {author} from {year}.",
            "{author} is the author of {title} ({year}).",
            "I am reading {title}, published by {author} in {year}.",
            "{year}: {title} by {author}",
        ),
    ),
    Schema(
        {"name": words.person, "phone": _phone},
        (
            "Call {name} at {phone}.",
            "{name}'s number is {phone}.",
            "{name}: {phone}",
            "You can reach {name} at {phone}.",
            "The phone number of {name} is {phone}.",
            "Contact: {name}, tel. {phone}",
            "Ring {name} on {phone}.",
            "{phone} is the number of {name}.",
            "My name is {name} and my phone is {phone}.",
            "Dial {phone} and ask for {name}.",
        ),
    ),
    Schema(
        {"owner": _first, "pet": _first, "animal": _ANIMAL},
        (
            "{owner} has a {animal} called {pet}.",
            "{pet} is the {animal} of {owner}.",
            "{owner}'s {animal} is named {pet}.",
            "{owner} owns a {animal}, {pet}.",
            "The {animal} {pet} belongs to {owner}.",
            "{pet} is a {animal} and lives with {owner}.",
            "{owner} bought a {animal} and named it {pet}.",
            "A {animal} called {pet} lives with {owner}.",
            "{owner} walks {pet}, a {animal}.",
            "{owner} looks after a {animal} named {pet}.",
        ),
    ),
    Schema(
        {"guest": words.person, "room": _between(1, 999), "nights": _between(1, 30)},
        (
            "{guest} stays in room {room} for {nights} nights.",
            "Room {room}: {guest}, {nights} nights",
            "{guest} booked room {room} for {nights} nights.",
            "For {nights} nights, {guest} has room {room}.",
            "Give {guest} room {room} for {nights} nights.",
            "Guest {guest}, room {room}, {nights} nights",
            "Room {room} is taken by {guest} for {nights} nights.",
            "{guest} wants room {room}, {nights} nights.",
            "{nights} nights in room {room} for {guest}.",
            "{guest} will spend {nights} nights in room {room}.",
        ),
    ),
    Schema(
        {
            "city": words.city,
            "temperature": _between(-20, 45),
            "weather": _choice(
                "sunny rainy cloudy windy foggy snowy stormy clear humid dry icy hazy"
            ),
        },
        (
            "It is {temperature} degrees and {weather} in {city}.",
            "{city}: {weather}, {temperature} degrees",
            "{city} is {weather} today at {temperature} degrees.",
            "In {city} it is {weather}, {temperature} C.",
            "The weather in {city} is {weather} with {temperature} degrees.",
            "{weather} in {city}, {temperature} C",
            "Today {city} has {temperature} degrees and it is {weather}.",
            "{temperature} degrees in {city}, {weather}.",
            "Expect {weather} skies and {temperature} degrees in {city}.",
            "{city} reports {temperature} C and {weather}.",
        ),
    ),
    Schema(
        {"name": words.person, "email": email},
        (
            "{name}'s email is {email}.",
            "Write to {name} at {email}.",
            "{name} <{email}>",
            "{name}, {email}",
            "The address of {name} is {email}",
            "You can email {name} at {email}",
            "Mail {email} to reach {name}.",
            "I am {name}, my email is {email}",
            "Contact {name}: {email}",
            "{email} belongs to {name}.",
        ),
    ),
    Schema(
        {"name": words.person, "people": _between(1, 20), "time": clock},
        (
            "A table for {people} at {time} for {name}.",
            "{name} booked a table for {people} at {time}.",
            "Reservation: {name}, {people} people, {time}",
            "Table for {people} people at {time}, name {name}.",
            "{name} comes at {time} with {people} people.",
            "At {time}, {people} people, under the name {name}.",
            "Please reserve a table for {people} people at {time} for {name}.",
            "{name} reserved for {people} at {time}.",
            "We are {people} people and come at {time}. The name is {name}.",
            "{time}: {name}, {people} people",
        ),
    ),
    Schema(
        {"product": _phrase, "color": _COLOR, "quantity": _between(1, 99)},
        (
            "I need {quantity} {color} {product}.",
            "{quantity} {color} {product}, please.",
            "Send me {quantity} {product} in {color}.",
            "We have {quantity} {color} {product} in stock.",
            "Order {quantity} {product}, color {color}.",
            "{quantity} x {product} ({color})",
            "There are {quantity} {color} {product} on the shelf.",
            "Buy {quantity} {color} {product}.",
            "{product} in {color}, {quantity} pieces",
            "Add {quantity} {color} {product} to the cart.",
        ),
    ),
    Schema(
        {"sender": words.person, "amount": _price, "recipient": words.person},
        (
            "{sender} paid {amount} to {recipient}.",
            "{sender} sent {amount} to {recipient}.",
            "{recipient} received {amount} from {sender}.",
            "Transfer of {amount} from {sender} to {recipient}",
            "{sender} owes {recipient} {amount}.",
            "{sender} gave {recipient} {amount}.",
            "{recipient} got {amount} from {sender}.",
            "From {sender} to {recipient}: {amount}",
            "{sender} transferred {amount} to {recipient}.",
            "Payment by {sender} to {recipient}, {amount}",
        ),
    ),
)
BEFORE = (
    "Extract {k} as JSON: {s}",
    "Extract {k} as JSON: {s}",
    "Extract the {k} as JSON: {s}",
    "Extract {k} from this text as JSON: {s}",
    "JSON with {k}: {s}",
    "Return JSON with {k}: {s}",
    "Give me {k} as JSON: {s}",
    "Extract JSON ({c}): {s}",
    "To JSON ({c}): {s}",
    "{c} as JSON: {s}",
    "Get {k} as JSON from: {s}",
    "Extract {k}: {s}",
    "JSON keys {c}: {s}",
    "Find {k} in JSON form: {s}",
    "Turn this into JSON with {k}: {s}",
    "Extract to JSON with keys {c}: {s}",
    "{s}\nJSON: {c}",
    "{s} Extract {k} as JSON.",
    "{s} Give {k} as JSON.",
    "Text: {s}\nExtract {k} as JSON.",
    "Read: {s}\nReturn {k} as JSON.",
    "Extract {q} as JSON: {s}",
    "Fill in {b}: {s}",
    "Extract {b}: {s}",
)


def compact(fields: dict[str, Value]) -> str:
    """JSON without spaces, letters beyond ASCII as they are."""
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


def _in_words(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else ", ".join(keys[:-1]) + " and " + keys[-1]


def instruction(rng: random.Random, keys: list[str], sentence: str) -> str:
    """The request: the keys as a list in words, between commas, quoted, or as an empty object."""
    parts = {
        "k": _in_words(keys),
        "c": ", ".join(keys),
        "q": ", ".join(f'"{k}"' for k in keys),
        "b": "{" + ",".join(f'"{k}"' for k in keys) + "}",
        "s": sentence,
    }
    return vary(rng, rng.choice(BEFORE)).format(**parts)


def articles(sentence: str) -> str:
    """`a engineer` -> `an engineer`; `a` is never a value, so no value changes."""
    return re.sub(r"\b([Aa]) (?=[aeiouAEIOU])", r"\1n ", sentence)


def _spoken(rng: random.Random, sentence: str, fields: dict[str, Value]) -> str:
    """The articles put right, and now and then a currency as the sign before the price."""
    sign = _SYMBOLS.get(str(fields.get("currency")))
    if sign and rng.random() < 0.3:
        price = f"{fields['price']} {fields['currency']}"
        sentence = sentence.replace(price, f"{sign}{fields['price']}")
    return articles(sentence)


@dataclass(frozen=True)
class Extraction:
    """Keys in the order asked for: mostly all of a schema, sometimes two of them or reordered."""

    name: str = "json"

    def example(self, seed: int, index: int, split: Split = "train") -> Example:
        """A sentence of one schema with values of the split."""
        rng = generator(self.name, seed, index, split)
        which = rng.randrange(len(SCHEMAS))
        schema = SCHEMAS[which]
        fields = {key: make(rng, split) for key, make in schema.makers.items()}
        sentence = _spoken(rng, rng.choice(schema.sentences).format(**fields), fields)
        keys = list(fields)
        roll = rng.random()
        if roll < 0.1:
            rng.shuffle(keys)
        elif roll < 0.2 and len(keys) > 2:
            keys.remove(rng.choice(keys))
            if roll > 0.17:
                keys.remove(rng.choice(keys))
        answer = compact({key: fields[key] for key in keys})
        return Example(
            self.name, instruction(rng, keys, sentence), answer, {"schema": ",".join(schema.makers)}
        )

    def check(self, example: Example, answer_text: str) -> bool:
        """Exact match."""
        return exact(example, answer_text)
