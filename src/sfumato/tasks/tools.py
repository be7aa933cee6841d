"""A sentence -> a call `{"tool":...,"arguments":{...}}` with what the sentence says."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from sfumato.tasks import words
from sfumato.tasks.base import Example, Split, exact, generator, held_out, listed, vary
from sfumato.tasks.dates import WEEKDAYS
from sfumato.tasks.extraction import Value, articles, clock, compact, day_text

Maker = Callable[[random.Random, Split], Value]


def _day(rng: random.Random, _split: Split) -> Value:
    return rng.choice((*WEEKDAYS, "today", "tomorrow", "tomorrow", "today"))


def _amount(rng: random.Random, _split: Split) -> Value:
    return rng.randint(1, 500) if rng.random() < 0.7 else rng.randint(1, 999) / 10


def _unit(rng: random.Random, _split: Split) -> Value:
    return rng.choice(
        listed("km miles m cm inches feet kg pounds grams EUR USD GBP yen liters cups")
    )


def _language(rng: random.Random, _split: Split) -> Value:
    return rng.choice(
        listed("French German Spanish Italian Dutch Polish Greek Turkish Japanese Hindi")
    )


def _words(fewest: int, most: int) -> Maker:
    return lambda rng, split: words.phrase(rng, split, fewest, most)


_SENTENCES = (
    "I will be {n} minutes late for the {w}",
    "the {w} is ready",
    "please bring the {w}",
    "meet me in {c}",
    "see you at {t} in {c}",
    "don't forget the {w}",
    "I am on my way to {c}",
    "can we meet at the {w}?",
    "how was the {w}?",
    "thanks for the {w}",
    "where is the {w}?",
    "I bought {n} {w}",
    "the {w} starts at {t}",
    "call me about the {w} tomorrow",
    "I like your {w}",
    "we need more {w}",
    "buy {w} and {v}",
    "my {w} is {v}",
    "I am in {c}",
    "{w} is at {t}",
    "see you in {c} tomorrow",
)


def _text(rng: random.Random, split: Split) -> Value:
    """Half a few words, half a sentence as people send it."""
    if rng.random() < 0.5:
        return words.phrase(rng, split, 1, 5)
    w, v = words.word(rng, split), words.word(rng, split)
    c, t = words.city(rng, split), clock(rng, split)
    return rng.choice(_SENTENCES).format(n=rng.randint(2, 90), w=w, v=v, c=c, t=t)


def _event(rng: random.Random, split: Split) -> Value:
    return words.title(rng, split, 1, 3)


def _person(rng: random.Random, split: Split) -> Value:
    return words.person(rng, split, 0.25)


def _room(rng: random.Random, _split: Split) -> Value:
    rooms = listed("kitchen bedroom bathroom office hallway garage garden basement attic lounge")
    return rng.choice(rooms)


@dataclass(frozen=True)
class Tool:
    """Parameters in their order, and sentences; a parameter a sentence lacks is left out."""

    name: str
    makers: dict[str, Maker]
    sentences: tuple[str, ...]

    @property
    def signature(self) -> str:
        """As a prompt lists it: `set_timer(minutes, label)`."""
        return f"{self.name}({', '.join(self.makers)})"


TOOLS = (
    Tool(
        "set_timer",
        {"minutes": lambda r, s: r.randint(1, 180), "label": _words(1, 2)},
        (
            "Set a timer for {minutes} minutes called {label}",
            "Start a {minutes} minute timer named {label}",
            "Set a {minutes}-minute {label} timer",
            "Timer for {minutes} minutes, label {label}",
            "Remind me about the {label} in {minutes} minutes",
            "Set a timer for {minutes} minutes",
            "Time {minutes} minutes for the {label}",
            "Please start a timer of {minutes} minutes for {label}",
            "I need a timer called {label} for {minutes} minutes",
            "Count down {minutes} minutes for {label}",
            "Start a {label} timer for {minutes} minutes",
            "Set a timer for {minutes} minutes for {label}",
        ),
    ),
    Tool(
        "send_message",
        {"to": _person, "text": _text},
        (
            "Send a message to {to}: {text}",
            "Tell {to} {text}",
            "Text {to}: {text}",
            "Message {to} saying {text}",
            "Send {to} the message {text}",
            "Write to {to}: {text}",
            "Let {to} know: {text}",
            "Send {to} a text saying {text}",
            "Tell {to}: {text}",
            "Text {to} that {text}",
            "Send the text {text} to {to}",
            "Please message {to}: {text}",
            "Tell {to} that {text}",
        ),
    ),
    Tool(
        "get_weather",
        {"city": words.city, "day": _day},
        (
            "What's the weather in {city} {day}?",
            "Weather in {city} on {day}",
            "How is the weather in {city} {day}?",
            "Will it rain in {city} {day}?",
            "Show the forecast for {city} on {day}",
            "What is the weather in {city}?",
            "Get the {city} weather for {day}",
            "Is it cold in {city} {day}?",
            "Weather for {city}, {day}",
            "Do I need an umbrella in {city} {day}?",
            "{day}'s weather in {city}",
            "How warm is it in {city} {day}?",
        ),
    ),
    Tool(
        "play_music",
        {"artist": _person},
        (
            "Play music by {artist}",
            "Play {artist}",
            "Put on some {artist}",
            "I want to hear {artist}",
            "Play songs by {artist}",
            "Play something by {artist}",
            "Start playing {artist}",
            "Can you play {artist}?",
            "Let's listen to {artist}",
            "Play the latest album by {artist}",
            "Put on music from {artist}",
            "Please play some {artist} songs",
        ),
    ),
    Tool(
        "add_event",
        {"title": _event, "date": day_text, "time": clock},
        (
            "Add {title} on {date} at {time}",
            "Schedule {title} for {date} at {time}",
            "Put {title} on {date} at {time} in my calendar",
            "Add an event called {title} on {date} at {time}",
            "Create the event {title}, {date}, {time}",
            "New event: {title} on {date} at {time}",
            "I have {title} on {date} at {time}",
            "Book {title} on {date} at {time}",
            "Add {title} to my calendar on {date} at {time}",
            "On {date} at {time} I have {title}",
            "Plan {title} for {date}, {time}",
            "Calendar: {title}, {date} at {time}",
        ),
    ),
    Tool(
        "convert",
        {"amount": _amount, "from": _unit, "to": _unit},
        (
            "Convert {amount} {from} to {to}",
            "Convert {amount} {from} into {to}",
            "How much is {amount} {from} in {to}?",
            "Change {amount} {from} to {to}",
            "What is {amount} {from} in {to}?",
            "{amount} {from} in {to}",
            "Use the converter: {amount} {from} to {to}",
            "Call the converter for {amount} {from} in {to}",
            "I want {amount} {from} converted to {to}",
            "Have {amount} {from} converted into {to}",
            "Run convert on {amount} {from} to {to}",
            "Can you convert {amount} {from} to {to} with the tool?",
            "Let the tool convert {amount} {from} to {to}",
            "Use convert: {amount} {from} into {to}",
            "Look up {amount} {from} in {to}",
            "Get {amount} {from} converted to {to}",
        ),
    ),
    Tool(
        "set_alarm",
        {"time": clock, "day": _day},
        (
            "Set an alarm for {time} on {day}",
            "Wake me up at {time} on {day}",
            "Alarm at {time} on {day}",
            "Wake me at {time}",
            "Wake me at {time} {day}",
            "Set an alarm for {time}",
            "I need an alarm at {time} on {day}",
            "Set the alarm to {time} for {day}",
            "Please wake me up at {time} on {day}",
            "On {day}, wake me at {time}",
            "Alarm for {day} at {time}",
        ),
    ),
    Tool(
        "search",
        {"query": _words(1, 4)},
        (
            "Search for {query}",
            "Search the web for {query}",
            "Look up {query}",
            "Find information about {query}",
            "Google {query}",
            "Find out about {query}",
            "Search {query}",
            "Do a search for {query}",
            "What can you find about {query}?",
            "Look for {query} online",
        ),
    ),
    Tool(
        "create_note",
        {"text": _text},
        (
            "Make a note: {text}",
            "Note: {text}",
            "Write down {text}",
            "Take a note saying {text}",
            "Create a note: {text}",
            "Note down {text}",
            "New note: {text}",
            "Save a note: {text}",
            "Remember this: {text}",
            "Please note {text}",
        ),
    ),
    Tool(
        "translate",
        {"text": _words(1, 4), "to": _language},
        (
            "Translate {text} to {to}",
            "Translate {text} into {to}",
            "How do you say {text} in {to}?",
            "What is {text} in {to}?",
            "Say {text} in {to}",
            "Put {text} into {to}",
            "Give me the {to} for {text}",
            "Translate to {to}: {text}",
            "Into {to}: {text}",
            "I need {text} in {to}",
            "Translate '{text}' to {to}",
        ),
    ),
    Tool(
        "call",
        {"name": _person},
        (
            "Call {name}",
            "Phone {name}",
            "Give {name} a call",
            "Ring {name}",
            "Please call {name}",
            "Start a call with {name}",
            "Dial {name}",
            "I want to talk to {name} on the phone",
            "Make a call to {name}",
            "Can you call {name}?",
        ),
    ),
    Tool(
        "set_light",
        {"room": _room, "state": lambda r, s: r.choice(("on", "off"))},
        (
            "Turn {state} the light in the {room}",
            "Switch {state} the {room} light",
            "Turn the {room} lights {state}",
            "{room} light {state}",
            "Lights {state} in the {room}",
            "Turn {state} the {room} lights",
            "Put the light in the {room} {state}",
            "Please switch the {room} light {state}",
            "Set the {room} light to {state}",
            "Make the {room} light go {state}",
        ),
    ),
)
WEIGHTS = (1.0, 1.3, 1.0, 1.0, 1.4, 0.8, 0.6, 0.8, 0.8, 0.8, 0.6, 0.4)
WORDINGS = (
    "Call a tool: {s}",
    "Call a tool: {s}",
    "Tool call: {s}",
    "Use a tool: {s}",
    "Which tool call? {s}",
    "{s} (tool call)",
    "Tool: {s}",
    "Make a tool call: {s}",
    "Write the tool call: {s}",
    "Assistant, {s}",
    "Pick a tool: {s}",
    "Choose a tool and its arguments: {s}",
    "Function call: {s}",
    "Call the right tool: {s}",
    "{s}\nTool call:",
    "Tools: {t}\n{s}",
    "Tools: {t}. {s}",
    "Tools: {t}. {s}",
    "Call one of {t}: {s}",
)


# A call with these arguments alone names no word of its own: it is held out as a whole.
CLOSED = frozenset(listed("minutes amount from to time day room state"))


def _spoken(rng: random.Random, pattern: str, values: dict[str, Value]) -> str:
    """The sentence with its articles right, "1 minute", and no "on tomorrow"."""
    sentence = articles(vary(rng, pattern).format(**values))
    sentence = re.sub(r"\b[Oo]n (today|tomorrow)\b", r"\1", sentence)
    if values.get("minutes") == 1:
        sentence = sentence.replace("1 minutes", "1 minute")
    if sentence[-1].isalnum() and rng.random() < 0.3:
        sentence += rng.choice("..!")
    return sentence


def _asked(rng: random.Random, tool: Tool, sentence: str) -> str:
    """The sentence alone, or worded as a tool call, some with one to three tools listed."""
    if rng.random() < 0.25 and tool.name != "convert":  # alone it would be the units task
        return sentence
    others = [t for t in TOOLS if t is not tool]
    shown = [*rng.sample(others, rng.randint(0, 2)), tool]
    rng.shuffle(shown)
    signatures = ", ".join(t.signature for t in shown)
    return vary(rng, rng.choice(WORDINGS)).format(s=sentence, t=signatures)


@dataclass(frozen=True)
class ToolCalls:
    """Twelve tools. A quarter of the sentences stand alone, some prompts list a few tools."""

    name: str = "tools"

    def example(self, seed: int, index: int, split: Split = "train") -> Example:
        """A request to one tool with values of the split."""
        rng = generator(self.name, seed, index, split)
        while True:
            tool = rng.choices(TOOLS, WEIGHTS)[0]
            pattern = rng.choice(tool.sentences)
            values = {k: make(rng, split) for k, make in tool.makers.items()}
            arguments = {k: v for k, v in values.items() if "{" + k + "}" in pattern}
            answer = '{"tool":"' + tool.name + '","arguments":' + compact(arguments) + "}"
            if not CLOSED.issuperset(arguments) or held_out("call", answer) == (split == "heldout"):
                break
        prompt = _asked(rng, tool, _spoken(rng, pattern, values))
        return Example(self.name, prompt, answer, {"tool": tool.name})

    def check(self, example: Example, answer_text: str) -> bool:
        """Exact match."""
        return exact(example, answer_text)
