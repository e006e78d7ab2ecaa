r"""Words behind a number: units, which do not count, and words that change the value.

The rule: a word behind a number is a unit only if it is a known one. Known are the symbols and names of measures and
money below, and what GSM8K and MATH count (``counted_words``). All words of a phrase must be known: *18 duck eggs a day*
is 18. The words of ``_SCALES`` are read with the number: *2 thirds* is 2/3, and *5 million* is 5,000,000. Any other word
stays, so that *20 fewer apples*, *12 AM* and *2 xy* are no numbers and equal none; nor does *18 quokkas*, whose noun is
not in the list. GSM8K and MATH ignore units, and so does this rule: *10 cents* equals *10 dollars*.
"""

from __future__ import annotations

import re
from fractions import Fraction

from gpart.lightning_modules.mathematics.counted_words import BESIDE, COUNTED


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Their case counts: 2 m is two metres, and 2 M may be two million. Other letters alone are variables.
_SYMBOLS = _words("""
nm mm cm dm km mi ft yd in m ha ac mg kg kgs g lb lbs oz ml mL cl dl l L gal qt pt tsp tbsp tbs ms s sec secs min mins h hr
hrs mph MPH kph kmh fps rpm Hz kHz MHz kW kWh MW kB KB MB GB TB Mbps USD EUR GBP CAD AUD pts deg rad
""")
_NAMES = _words("""
millimeter centimeter decimeter meter kilometer millimetre centimetre decimetre metre kilometre inch foot yard mile furlong
fathom acre hectare milligram gram kilogram kilo tonne ton ounce pound carat milliliter centiliter deciliter liter
millilitre centilitre litre gallon quart pint cup teaspoon tablespoon bushel barrel millisecond second minute hour day night
week weekend fortnight month year decade dollar cent penny nickel dime buck euro shilling peso peseta rupee yen yuan ruble
franc krona percent degree radian watt kilowatt joule calorie kilocalorie newton volt ampere amp ohm hertz pascal byte
kilobyte megabyte gigabyte terabyte bit megabit gigabit knot unit
""")
_ALONE = _words(
    "inches feet century centuries pennies celsius fahrenheit kelvin each apiece left total altogether remaining"
)
_KNOWN = frozenset({*_NAMES, *(f"{name}s" for name in _NAMES), *_ALONE, *COUNTED})
# They say of what, how large or how often, and need a unit beside them: 4 square is no 4.
_BESIDE = BESIDE | _words("""
of a an the per each every in all old tall long wide high deep away daily weekly monthly yearly overall combined sq square cu
cubic squared cubed nautical us positive distinct real complex ordered possible full whole
""")

_ORDINALS = ("third", "quarter", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "twentieth")
_PARTS = {
    "half": Fraction(1, 2),
    **dict(zip(_ORDINALS, (Fraction(1, part) for part in (3, 4, 4, 5, 6, 7, 8, 9, 10, 20)), strict=True)),
    "hundredth": Fraction(1, 100),
    "thousandth": Fraction(1, 1000),
    "millionth": Fraction(1, 10**6),
}
_LARGE = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALES = {
    **{f"{word}s": part for word, part in _PARTS.items() if word != "half"},
    "half": _PARTS["half"],
    "halves": _PARTS["half"],
    "score": Fraction(20),
    **{word + end: Fraction(factor) for word, factor in _LARGE.items() for end in ("", "s")},
}
_POWERS = {"squared": 2, "cubed": 3}

TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_WORD = re.compile(r"([A-Za-z]+)\.?(?:\^(?:[0-9]|\{-?[0-9]\}))?")
_BETWEEN = re.compile(r"[\s/-]+|\\cdot(?![A-Za-z])")


def words_of(behind: str) -> list[str] | None:
    r"""Returns the words of what stands behind a number; none for nothing, None for anything else than words.

    Without a blank before it, only a symbol of two letters or more is a word: in 2xy, 3x and 5/x there are variables.

    Example:
        >>> words_of(r"\text{ sq. ft}"), words_of(" m/s^2"), words_of("")
        (['sq', 'ft'], ['m', 's'], [])
        >>> words_of("cm"), words_of("x"), words_of("xy"), words_of("/x"), words_of(" + 2"), words_of(r"\pi")
        (['cm'], None, None, None, None, None)
    """
    plain = re.sub(r"\s*\^\s*", "^", TEXT.sub(r" \1 ", behind))
    if not plain.strip():
        return []
    found = [_WORD.fullmatch(piece) for piece in _BETWEEN.split(plain.strip().removeprefix("/").strip())]
    words = [match[1] for match in found if match]
    if len(words) < len(found):
        return None
    free = plain[0].isspace() or (plain[0] == "/" and len(words[0]) > 2)
    return words if free or (len(words[0]) > 1 and words[0] in _SYMBOLS) else None


def is_unit(words: list[str]) -> bool:
    """Returns whether all words are known, and one of them is the name or the symbol of a unit.

    Example:
        >>> [is_unit(text.split()) for text in ("duck eggs a day", "m s", "square feet", "square", "fewer eggs", "AM")]
        [True, True, True, False, False, False]
    """
    known = [word in _SYMBOLS or word.lower() in _KNOWN for word in words]
    return any(known) and all(is_known or word.lower() in _BESIDE for is_known, word in zip(known, words, strict=True))


def with_words(value: Fraction, words: list[str]) -> Fraction | None:
    """Returns the value of a number with the words behind it, without the unit; None if they are not all known.

    Example:
        >>> for text in ("thirds of a cup", "hundred thousand dollars", "cubed", "eggs", "fewer", "squared feet"):
        ...     print(with_words(Fraction(2), text.split()))
        2/3
        200000
        8
        2
        None
        None
    """
    if words and (power := _POWERS.get(words[0].lower())):
        return value**power if value >= 0 and len(words) == 1 else None  # -3 squared may be 9 and -9
    scales = [_scale(word, value) for word in words]
    known = next((at for at, scale in enumerate(scales) if scale is None), len(words))
    for scale in scales[:known]:
        value *= scale or 1
    behind = words[known:]
    if known and behind[:1] == ["of"]:  # 2 thirds of a cup; but 20 of a cup is not 20
        behind = behind[1:]
    return value if not behind or is_unit(behind) else None


def _scale(word: str, value: Fraction) -> Fraction | None:
    word = word.lower()
    return _PARTS.get(word) if value == 1 and word in _PARTS else _SCALES.get(word)
