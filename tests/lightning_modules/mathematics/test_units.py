"""A word behind a number is a unit only if it is a known one; some words are read with the number."""

from __future__ import annotations

from fractions import Fraction

import pytest

from gpart.lightning_modules.mathematics import counted_words, units
from gpart.lightning_modules.mathematics.answers import exact_match, verified_match
from gpart.lightning_modules.mathematics.quantities import before_other_words, has_unit, number

# Each is no unit: the answer is not the number before it.
CHANGED = [
    "2 thirds", "3 quarters", "1 half", "3 halves", "7 tenths", "3 hundredths", "2 trillion", r"5\text{ trillion}", "2 score",
    "4 squared", r"9\text{ squared}", "5 factorial", "5 negative", "20 fewer apples", "12 AM", r"2\text{ thirds}", "2 xy",
    "-2 ab", r"3 \text{xy}", "3~xy", "3 cubed", r"3\mathrm{ thirds}", r"5\mbox{ dozen}", "6 pm", "10 below zero", "2 M", "5 K",
    "5 grand", "3 more", "3 less", "4 square", "4 cube", "3 short", "2 pairs", "7 quokkas", r"7\text{ mn}", "3 log", "2 times",
    "2 dozen eggs", "2 thirds of a cup", "20 of", "5 a", "5 or more", "5 ago", "-3 squared", "30 over par", "2 squared feet",
    r"6\text{ p.m.}", r"4\text{ hundred}", "5 twice", "5 double", "5 minus", "5 AD", "5 xyz", "5 and up",
]  # fmt: skip
# Each is the number before its words, by the rule of units.
UNITS = {
    "18": ["18 eggs", "18 Eggs", "18 duck eggs a day", "18 cups of sugar", "18 red marbles", "18 people", "18 eggs left", "18 each",
           "18 left", "18 years old", "18 loaves", "18 children", "18 pages per day", "18 eggs in total", "18 boxes"],
    "20": ["20 USD", "$20", "20 dollars", "20 US dollars", r"\$20\text{ per hour}", "20 percent", "20 %", "20°", "20 €"],
    "12": ["12 cm²", "12 cm^2", r"12\text{ cm}^2", "12cm", "12 sq. ft.", "12 square feet", r"12\,\mathrm{m}^{3}", "12 cm squared",
           r"12\text{ cubic inches}", r"12\mbox{ units}", r"12\text{ square units}", "12 inches", "12 MB"],
    "15": ["15 m/s", "15 km/h", r"15\text{ m/s}", "15 m/s^2", "15 meters per second", "15 mph", "15/hour", "15 m", "15 s", "15 L"],
    "2": ["2 m", "2 s", r"2\text{ s}", "2 h", "2in", "2 ways", r"2\text{ solutions}", "2 degrees", "2 ounces"],
}  # fmt: skip
# Each pair is equal: words that are read with the number.
READ = [
    ("2 thirds", r"\frac{2}{3}"), ("3 cubed", "27"), ("4 squared", "16"), ("1 half", "0.5"), ("3 quarters of a mile", "0.75"),
    (r"2\text{ thirds}", r"\frac23"), ("1 third", "1/3"), ("2 trillion", "2,000,000,000,000"), ("2.5 million dollars", "2500000"),
    ("3 dozen eggs", "36"), ("5 hundred thousand", "500,000"), ("2 score", "40"), ("7 tenths", "0.7"), ("3 hundredths", "0.03"),
    (r"5\text{ million}", "5 million"), ("2 dozens of eggs", "24"),
]  # fmt: skip


@pytest.mark.parametrize("answer", CHANGED)
def test_other_words_are_no_units(answer: str) -> None:
    bare = answer.replace("\\", " ").replace("~", " ").split()[0]
    assert bare.lstrip("-").isdigit()
    for match in (exact_match, verified_match):
        assert match(rf"\boxed{{{answer}}}", rf"\boxed{{{answer}}}")
        assert not match(f"#### {answer}", f"#### {bare}")
        assert not match(rf"\boxed{{{bare}}}", rf"\boxed{{{answer}}}")


@pytest.mark.parametrize(("answer", "bare"), [(answer, bare) for bare, answers in UNITS.items() for answer in answers])
def test_known_units_do_not_count(answer: str, bare: str) -> None:
    assert has_unit(answer)
    for match in (exact_match, verified_match):
        assert match(rf"\boxed{{{answer}}}", f"#### {bare}")
        assert match(f"#### {bare}.0", rf"\boxed{{{answer}}}")
        assert not match(rf"\boxed{{1{answer}}}", f"#### {bare}")


@pytest.mark.parametrize(("answer", "reference"), READ)
def test_words_that_are_read_with_the_number(answer: str, reference: str) -> None:
    for match in (exact_match, verified_match):
        assert match(f"#### {answer}", rf"\boxed{{{reference}}}")
        assert match(rf"\boxed{{{reference}}}", f"#### {answer}")
        assert not match(f"#### 9{answer}", rf"\boxed{{{reference}}}")


@pytest.mark.parametrize(
    ("one", "two", "equal"),
    [("2 xy", "2xy", True), (r"3 \text{xy}", "3xy", True), ("3~xy", "3 xy", True), ("3 ab", "3 cd", False), ("2 x y", "2xy", True),
     (r"\sqrt{2}\text{ thirds}", r"\sqrt{2}", False), (r"\sqrt{2}\text{ cm}", r"\sqrt{2}", True), ("5m", "5", False),
     (r"3\sqrt{2}\mbox{ inches}", r"3\sqrt{2}", True), (r"\text{ cm}", r"\text{ m}", False)],
)  # fmt: skip
def test_products_of_letters_and_units_behind_other_answers(one: str, two: str, equal: bool) -> None:
    assert exact_match(rf"\boxed{{{one}}}", rf"\boxed{{{two}}}") == equal
    assert exact_match(rf"\boxed{{{two}}}", rf"\boxed{{{one}}}") == equal


def test_math_verify_does_not_drop_other_words_behind_a_root_either() -> None:
    assert not verified_match(r"\boxed{\sqrt{2}\text{ thirds}}", r"\boxed{\sqrt{2}}")
    assert verified_match(r"\boxed{\sqrt{2}\text{ cm}}", r"\boxed{\sqrt{2}}")


def test_no_listed_word_changes_a_value() -> None:
    listed = units._KNOWN | units._BESIDE | units._SYMBOLS
    changing = {
        *units._SCALES, *units._PARTS, "more", "less", "fewer", "negative", "minus", "plus", "times", "twice", "double", "triple",
        "below", "above", "over", "under", "short", "ago", "am", "pm", "AM", "PM", "pi", "log", "sin", "cos", "tan", "mod", "root",
        "power", "factorial", "and", "or", "to", "pair", "pairs", "couple", "couples", "grand", "point", "first", "off", "debt",
        "loss", "mean", "cube", "not", "no", "x", "y", "n", "k", "K", "M", "B", "e", "i", "xy", "ab", "extra", "additional",
    }  # fmt: skip
    assert not listed & (changing - {"second", "seconds"})
    assert "square" not in units._KNOWN  # only beside a unit
    assert min(len(listed), len(counted_words.COUNTED)) > 2000
    assert {
        "goose",
        "child",
        "tooth",
        "knife",
        "loaf",
        "box",
        "berry",
        "potato",
        "egg",
        "person",
    } <= counted_words.COUNTED


def test_words_are_read_only_where_they_stand_alone_behind_a_number() -> None:
    assert [units.words_of(text) for text in (" eggs", "eggs", "/m", "/hr", " eggs,", " eggs 5", r"\text{m}")] == [
        ["eggs"], None, None, ["hr"], None, None, ["m"],
    ]  # fmt: skip
    assert units.with_words(Fraction(1), ["third"]) == Fraction(1, 3)
    assert units.with_words(Fraction(2), ["third"]) is None  # two of the third kind
    assert before_other_words("1" * 1001 + " pm") is None


@pytest.mark.parametrize(
    ("text", "value"),
    [("1,000,000", "1000000"), ("1,00", None), ("0,123", None), ("1234,567", None), ("1,000.25", "4001/4"), ("7.", "7"),
     ("1e5", "100000"), ("2.5E-3", "1/400"), ("1e9999", None), ("2e", None), ("--3", None), ("1/2/3", None), ("\\frac{1}{0}", None), ("5 a", None), ("5/x", None), ("5xy", None),
     ("10 p.m.", None), ("2 pi", None), ("3 or 4", None), ("5^2", None), ("٣", None), ("-1\\frac12", "-3/2"),
     ("$15/hour", "15"), ("5 sq. ft.", "5"), ("9" * 1001, None), ("", None), ("cm", None),
     ("10 pm", None), ("3 or more", None), ("5 and up", None), (r"15\mbox{ cm}^2", "15")],
)  # fmt: skip
def test_numbers(text: str, value: str | None) -> None:
    assert (None if (got := number(text)) is None else str(got)) == value
