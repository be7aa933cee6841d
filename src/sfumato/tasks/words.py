"""Names, places and words that examples are about; a tenth of all words is held out by hash."""

from __future__ import annotations

import random
from collections.abc import Callable

from sfumato.tasks.base import Split, held_out, listed
from sfumato.tasks.vocabulary_words import WORDS

FIRST_NAMES = listed(
    """
    Anna Maria Peter John Mary Robert Linda Michael Susan David Laura James Emma Oliver Sophia Liam
    Noah Ava Mia Lucas Ethan Isabella Charlotte Amelia Harper Evelyn Abigail Emily Ella Scarlett
    Grace Chloe Victoria Riley Aria Lily Aurora Zoe Nora Hannah Layla Zara Omar Ali Yusuf Fatima
    Aisha Hassan Ibrahim Leila Samir Nadia Karim Tariq Priya Arjun Rahul Anjali Ravi Sunita Deepak
    Kavya Rohan Wei Mei Jun Ling Hiroshi Yuki Sakura Kenji Akira Haruto Min Jisoo Tuan Linh Ivan
    Olga Dmitri Natasha Boris Svetlana Pavel Katya Marek Zofia Piotr Agnieszka Lars Ingrid Sven
    Astrid Erik Freya Bjorn Hans Greta Klaus Heidi Jürgen Günter Pierre Marie Jean Claire François
    Élodie Luc Camille Giulia Marco Luca Francesca Paolo Chiara Carlos Lucia José Elena Miguel
    Carmen Pablo Sofía Diego Valentina João Ana Paulo Beatriz Rui Inês Kwame Ama Kofi Zuri Thabo
    Lerato Chidi Ngozi Amara Tom Tim Kim Sam Max Ben Ian Joe Amy Eva Leo Kai Bo Jo Al Ed Alice Bob
    Carol Dave Eve Frank Henry George William Thomas Daniel Matthew Andrew Joshua Kevin Brian Jason
    Jeffrey Ryan Jacob Gary Nicholas Eric Jonathan Stephen Larry Justin Scott Brandon Benjamin
    Samuel Gregory Alexander Patrick Jack Dennis Jerry Tyler Aaron Nathan Adam Zachary Walter Kyle
    Harold Carl Jeremy Keith Roger Gerald Arthur Terry Sean Christian Austin Albert Jesse Willie
    Patricia Jennifer Elizabeth Barbara Jessica Sarah Karen Nancy Lisa Betty Margaret Sandra Ashley
    Kimberly Donna Michelle Dorothy Amanda Melissa Deborah Stephanie Rebecca Sharon Cynthia
    Kathleen Helen Angela Shirley Brenda Pamela Nicole Ruth Katherine Samantha Christine Catherine
    Virginia Debra Rachel Janet
    """
)
SURNAMES = listed(
    """
    Smith Johnson Williams Brown Jones Garcia Miller Davis Rodriguez Martinez Hernandez Lopez
    Gonzalez Wilson Anderson Thomas Taylor Moore Jackson Martin Lee Perez Thompson White Harris
    Sanchez Clark Ramirez Lewis Robinson Walker Young Allen King Wright Scott Torres Nguyen Hill
    Flores Green Adams Nelson Baker Hall Rivera Campbell Mitchell Carter Roberts Schmidt Müller
    Weber Fischer Meyer Wagner Becker Hoffmann Schulz Koch Richter Klein Wolf Schröder Neumann
    Braun Zimmermann Krüger Rossi Russo Ferrari Esposito Bianchi Romano Colombo Ricci Marino Greco
    Dubois Durand Leroy Moreau Laurent Lefebvre Ivanov Petrov Sidorov Kowalski Nowak Novak Svoboda
    Horvat Nagy Kovacs Popescu Papadopoulos Yilmaz Kaya Demir Khan Ahmed Hussain Patel Sharma Singh
    Kumar Gupta Das Rao Chen Wang Zhang Liu Yang Huang Zhao Wu Zhou Tanaka Suzuki Sato Watanabe Kim
    Park Choi Tran Pham Okafor Adeyemi Mensah Nkosi Dlamini Silva Santos Oliveira Souza Pereira
    Costa Almeida O'Brien O'Neill O'Connor McDonald McCarthy MacLeod Johansson Andersson Nilsson
    Hansen Olsen Larsen
    """
)
CITIES = listed(
    """
    Paris London Berlin Madrid Rome Lisbon Vienna Prague Warsaw Budapest Athens Dublin Oslo
    Stockholm Helsinki Copenhagen Amsterdam Brussels Zurich Geneva Munich Hamburg Cologne Frankfurt
    Milan Naples Turin Florence Venice Barcelona Valencia Seville Porto Lyon Marseille Nice
    Bordeaux Moscow Kyiv Minsk Riga Vilnius Tallinn Istanbul Ankara Cairo Lagos Nairobi Accra
    Johannesburg Casablanca Tunis Tehran Baghdad Dubai Riyadh Doha Mumbai Delhi Kolkata Chennai
    Bangalore Karachi Lahore Dhaka Bangkok Hanoi Jakarta Manila Singapore Tokyo Osaka Kyoto Seoul
    Busan Beijing Shanghai Shenzhen Taipei Sydney Melbourne Brisbane Perth Auckland Wellington
    Toronto Montreal Vancouver Ottawa Chicago Boston Seattle Denver Austin Dallas Houston Phoenix
    Miami Atlanta Detroit Portland Lima Bogota Quito Santiago Caracas Havana Zürich Málaga Kraków
    Gdańsk Bologna Leeds Bristol Glasgow Edinburgh Cardiff Belfast Oxford Cambridge Liverpool
    Manchester
    """
)
TWO_WORD_CITIES = (
    "New York",
    "Los Angeles",
    "San Francisco",
    "Buenos Aires",
    "Mexico City",
    "Hong Kong",
    "São Paulo",
    "Cape Town",
    "Tel Aviv",
    "Rio de Janeiro",
    "Abu Dhabi",
    "New Delhi",
    "Las Vegas",
    "San Diego",
    "Kuala Lumpur",
    "Saint Petersburg",
    "Addis Ababa",
    "Salt Lake City",
)
_ONSETS = listed("b c d f g h j k l m n p r s t v w z b c d g k l m n p r s t v y qu x") + listed(
    "br ch cl cr dr fl fr gl gr kh kl kr ph pl pr sc sh sk sl sn sp st sv th tr tw wh zh"
)
_VOWELS = listed(
    "a e i o u a e i o u a e i o u a e i o u a e i o y ai au ea ee ei eo ia ie io oa oo ou ue ay ey"
)
_CODAS = listed(
    "n r s l m t k d n r s l n r s l m n ck ld lf ll lm ln lt mb nd ng nk nn ns nt nz"
) + listed("p b g x z v rd rk rl rm rn rs rt rz sch sh sk ss st th tt tz ff gh hn ch f h w")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def syllables(rng: random.Random, most: int = 4) -> str:
    """A pronounceable word of 1 to `most` syllables, lower case, 2 to 11 letters."""
    while True:
        word = ""
        for _ in range(rng.choice((1, 2, 2, 2, 3, 3, 4)[: 3 + most])):
            word += rng.choice(_ONSETS) if rng.random() < 0.88 else ""
            word += rng.choice(_VOWELS)
            word += rng.choice(_CODAS) if rng.random() < 0.36 else ""
        if rng.random() < 0.08:
            at = rng.randrange(len(word))
            word = word[:at] + rng.choice(_LETTERS) + word[at + 1 :]
        if 2 <= len(word) <= 11:
            return word


def belongs(text: str, split: Split) -> bool:
    """Train: no word of the text is held out. Held out: every word of it is."""
    words = text.replace("-", " ").lower().split()
    return all(held_out("word", w) == (split == "heldout") for w in words)


def _pick(split: Split, make: Callable[[], str]) -> str:
    while True:
        text = make()
        if belongs(text, split):
            return text


def word(rng: random.Random, split: Split) -> str:
    """One lower-case word: three in five English, the others made up."""
    return _pick(split, lambda: rng.choice(WORDS) if rng.random() < 0.6 else syllables(rng, 3))


def phrase(rng: random.Random, split: Split, fewest: int = 1, most: int = 3) -> str:
    """A few lower-case words."""
    return " ".join(word(rng, split) for _ in range(rng.randint(fewest, most)))


def title(rng: random.Random, split: Split, fewest: int = 1, most: int = 3) -> str:
    """A few words as a title is written: Each Capital, or only the first, or none."""
    text = phrase(rng, split, fewest, most)
    roll = rng.random()
    return text.title() if roll < 0.6 else text.capitalize() if roll < 0.8 else text


def _name_part(rng: random.Random, split: Split, known: tuple[str, ...]) -> str:
    def make() -> str:
        roll = rng.random()
        if roll < 0.35:
            return rng.choice(known)
        if roll < 0.43:
            return rng.choice(WORDS).capitalize()
        text = syllables(rng).capitalize()
        if roll > 0.98:
            text = rng.choice(("O'", "Mc", "De", "Mac", "Van", "D'", "Le", "Fitz")) + text
        elif roll > 0.96:
            text += "-" + syllables(rng, 2).capitalize()
        return text

    return _pick(split, make)


def person(rng: random.Random, split: Split, surname: float = 0.5) -> str:
    """A first name, with a surname as often as said."""
    first = _name_part(rng, split, FIRST_NAMES)
    return f"{first} {_name_part(rng, split, SURNAMES)}" if rng.random() < surname else first


def city(rng: random.Random, split: Split) -> str:
    """A town, known or made up; some of two or three words."""

    def make() -> str:
        roll = rng.random()
        if roll < 0.3:
            return rng.choice(CITIES)
        if roll < 0.36:
            return rng.choice(TWO_WORD_CITIES)
        name = syllables(rng).capitalize()
        end = rng.choice(("ton", "ville", "burg", "berg", "ford", "stad", "ham", "field", "grad"))
        return name + end if roll < 0.5 and len(name) < 8 else name

    text = _pick(split, make)
    if rng.random() < 0.04:
        text = (
            rng.choice(("New", "San", "Port", "Saint", "El", "Fort", "Bad", "North")) + " " + text
        )
    return text


def company(rng: random.Random, split: Split) -> str:
    """A firm: a made-up name or a word, sometimes with its form."""
    text = _name_part(rng, split, SURNAMES)
    ends = ("Labs", "Inc", "Ltd", "Group", "Systems", "Foods", "Bank", "Motors", "Media", "Works")
    return f"{text} {rng.choice(ends)}" if rng.random() < 0.4 else text
