"""Sentences of the embedded corpus: a small grammar of everyday English, 230 words, millions of sentences.

A sentence belongs to the train, dev or test part by a hash of its words, so the parts never share a sentence, however
large each is made. Words are spread evenly (no long tail), for a corpus of minutes has to show each of them often.
"""

from __future__ import annotations

import hashlib
import random

PARTS = ("train", "dev", "test")

# `$name` stands for one of the alternatives under that name; alternatives are divided by `|`.
GRAMMAR = {
    "sentence": "$person $past the $adjective $thing $where | $person $past $number $adjective $things $time"
    " | please $verb the $adjective $thing $where | can you $verb $number $things $time"
    " | the $adjective $animal $moved $where | $time the $adjective $animal $moved $where"
    " | $person and $person $moved $where $time | the $thing $where costs $number dollars"
    " | it was $weather $where $time | $person will $verb $number $things $where"
    " | i think the $adjective $thing is $state and the $animal is $state"
    " | why did $person $verb the $adjective $thing $time | we saw $number $things and a $adjective $animal $where"
    " | where is the $adjective $thing that $person $past | it is $number past $number $where"
    " | the $thing and the $thing are $state but $person is $state | $person $past $number $things",
    "person": "john | mary | peter | susan | alice | george | doctor brown | my brother | the teacher | the captain"
    " | your uncle | the farmer | a stranger | her daughter | his neighbor | the children",
    "past": "found | bought | painted | carried | watched | borrowed | dropped | washed | forgot | ordered"
    " | measured | stole",
    "verb": "find | buy | paint | carry | bring | open | choose | describe | move | clean | follow | repair",
    "adjective": "red | yellow | purple | wooden | silver | heavy | tiny | broken | famous | quiet | ancient | cheap"
    " | perfect | strange | golden | dirty | smooth | modern | gentle | orange",
    "thing": "table | basket | letter | machine | guitar | bicycle | picture | blanket | lantern | mirror | hammer"
    " | carpet | jacket | piano | window | engine | statue | kettle | camera | wagon",
    "things": "books | apples | shoes | candles | bottles | tickets | flowers | pencils | coins | sandwiches"
    " | envelopes | buttons | newspapers | potatoes",
    "animal": "horse | rabbit | elephant | monkey | tiger | spider | pigeon | dolphin | chicken | turtle | lion | wolf",
    "moved": "walked | jumped | slept | waited | travelled | danced | listened | stayed | worked | laughed",
    "where": "$preposition the $place",
    "preposition": "in | near | behind | under | beside | inside | around | above | outside | opposite",
    "place": "kitchen | river | church | bridge | station | valley | garden | island | tower | forest | beach | market"
    " | library | mountain | hospital | factory",
    "time": "yesterday | tomorrow | this morning | last night | before dinner | after lunch | every summer"
    " | twice a week | on $day | in $month",
    "day": "monday | tuesday | wednesday | thursday | friday | saturday | sunday",
    "month": "january | april | june | august | september | november",
    "number": "one | two | three | four | five | six | seven | eight | nine | ten | eleven | twelve | fifteen | twenty"
    " | thirty | fifty",
    "weather": "raining | snowing | cold | warm and sunny | windy | very dark",
    "state": "ready | empty | expensive | asleep | beautiful | missing | hungry | terrible | clever | lonely",
}
_RULES = {name: [line.split() for line in alternatives.split("|")] for name, alternatives in GRAMMAR.items()}


def words() -> list[str]:
    """All words of the grammar, upper case, sorted."""
    return sorted({w.upper() for lines in _RULES.values() for line in lines for w in line if not w.startswith("$")})


def _expand(name: str, rng: random.Random) -> list[str]:
    out: list[str] = []
    for symbol in rng.choice(_RULES[name]):
        out += _expand(symbol[1:], rng) if symbol.startswith("$") else [symbol]
    return out


def part_of(sentence: str) -> str:
    """The part that owns `sentence`: 8 of 10 sentences are train's, one each dev's and test's."""
    digest = hashlib.sha256(sentence.upper().encode()).digest()[0]
    return {0: "dev", 1: "test"}.get(digest % 10, "train")


def make_sentence(part: str, rng: random.Random) -> str:
    """A random sentence of `part` in LibriSpeech's spelling: upper case, no punctuation."""
    if part not in PARTS:
        raise ValueError(f"part={part!r}: expected one of {', '.join(PARTS)}")
    while True:
        sentence = " ".join(_expand("sentence", rng)).upper()
        if part_of(sentence) == part:
            return sentence
