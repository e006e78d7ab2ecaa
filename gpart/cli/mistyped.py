"""What to say of a value that a setting can't take: the setting, the value and what is expected, in place of jsonargparse's text.

Invariant: only a text of which every part is understood is replaced; any other is left as it is.
"""

from __future__ import annotations

import re

_KEY = re.compile(r'Parser key "([\w.]+)": ')
_CLASS = re.compile(r"Problem with given class_path '([\w.]+)': ")
_OF_CLASS = r"(?: - Expected a <class 'NoneType'> Given value type: .*)?"
"""What follows the message about a class's setting: the class itself could have been none at all."""
_ONE = re.compile(rf"Expected an? (?P<kinds>.+?)\. Got value: (?P<value>.*?){_OF_CLASS}")
_SEVERAL = re.compile(
    r"Does not validate against any of the Union subtypes Subtypes: .+? Errors: - Expected an? (?P<kinds>.+?)"
    rf" Given value type: .+? Given value: (?P<value>.*?){_OF_CLASS}"
)
_UNKNOWN = re.compile(rf"Option '(?P<name>[\w.]+)' is not accepted{_OF_CLASS}")


def mistyped(message: str) -> str | None:
    """What to say of jsonargparse's message about a value of a wrong type; None if it is about something else.

    Example:
        >>> mistyped('Parser key "lr": Expected a list[int]. Got value: fast')
        'lr=fast: expected list[int]'
    """
    line = " ".join(message.split())
    keys, classes = _KEY.findall(line), _CLASS.findall(line)
    start = max((each.end() for pattern in (_KEY, _CLASS) for each in pattern.finditer(line)), default=None)
    if start is None or len(classes) > 1:  # of several, it is not known which was meant
        return None
    setting, rest = ".".join(keys), line[start:]
    if unknown := _UNKNOWN.fullmatch(rest):
        return f"{setting}.{unknown['name']}: {classes[0]} has no such setting" if classes else None
    found = _ONE.fullmatch(rest) or _SEVERAL.fullmatch(rest)
    kinds = re.split(" - Expected an? ", found["kinds"]) if found else [""]
    if found is None or any(" - " in kind or not kind for kind in kinds):
        return None
    return f"{setting}={found['value']}: expected {' or '.join(map(_kind, kinds))}"


def _kind(text: str) -> str:
    """A type as it is written in a recipe.

    >>> [_kind(text) for text in ("<class 'int'>", "<class 'NoneType'>", "typing.Literal['a', 'b']", "list[str]")]
    ['int', 'null', "one of 'a', 'b'", 'list[str]']
    """
    text = re.sub(r"^<class '(.+)'>$", r"\1", text)
    return "null" if text == "NoneType" else re.sub(r"^typing\.Literal\[(.+)\]$", r"one of \1", text)
