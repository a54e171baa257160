"""The language in which runs are searched: ``status=completed and metrics.eval_loss<0.5``.

A condition is a word of :mod:`~hftune.tracking.terms`, an operator (``=``, ``!=``, ``<``, ``<=``,
``>``, ``>=``, ``~`` for "contains") and a value, or a word and ``in (a, b)``. Conditions are joined
by ``and``, ``or``, ``not`` and parentheses. Quotes hold texts with spaces together.
"""

from __future__ import annotations

import datetime
import json
import math
import operator as operators
import re
import time
from typing import TYPE_CHECKING, NamedTuple

import sqlalchemy as sa

from ..utils.errors import ConfigurationError, did_you_mean
from .run_record import STATES
from .run_values import clean_text
from .tables import params, runs, summaries
from .terms import Term, resolve

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection, Table

__all__ = ["where_condition"]

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<mark> [(),] )
      | (?P<operator> != | <= | >= | == | [=<>~] )
      | (?P<word> (?: "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*' | [^\s()=!<>~,"'] )+ )
    )""",
    re.VERBOSE | re.DOTALL,
)
_QUOTED = re.compile(r"\"((?:[^\"\\]|\\.)*)\"|'((?:[^'\\]|\\.)*)'", re.DOTALL)
_RESERVED = ("and", "or", "not", "in")
_DEEPEST = 50  # parentheses in each other
_MANY = 20_000  # runs
_OPERATORS = {
    "=": operators.eq,
    "<": operators.lt,
    "<=": operators.le,
    ">": operators.gt,
    ">=": operators.ge,
}

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_AGE = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_DATE = re.compile(r"(\d{4})-(\d\d)(?:-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d))?)?)?Z?")


class _Token(NamedTuple):
    kind: str  # mark, operator, word, or end
    text: str
    start: int
    end: int
    quoted: bool = False


class _Wrong(Exception):
    """Something wrong with one token."""

    def __init__(self, token: _Token, message: str) -> None:
        super().__init__(message)
        self.token = token


def where_condition(
    connection: Connection, text: str, now: float | None = None
) -> ColumnElement[bool]:
    """Reads a filter.

    Args:
        connection (sqlalchemy.Connection): To the store, which knows metrics and settings.
        text (str): See the module.
        now (float, *optional*): From when ages such as ``7d`` count back; defaults to now.

    Returns:
        A condition on the table of runs, true or false for each run and never NULL.

    Raises:
        ConfigurationError: With the place, if it cannot be read or names what nobody knows.
    """
    text = clean_text(text)
    try:
        tokens = _tokens(text)
        return _Parser(connection, tokens, time.time() if now is None else now).parse()
    except _Wrong as wrong:
        raise ConfigurationError(f"the filter: {wrong}\n{_pointed(text, wrong.token)}") from None


def _tokens(text: str) -> list[_Token]:
    tokens, place, end = [], 0, len(text.rstrip())
    while place < end:
        match = _TOKEN.match(text, place)
        if match is None:
            start = place + len(text[place:end]) - len(text[place:end].lstrip())
            what = "this quote has no end" if text[start] in "'\"" else "expected != after !"
            raise _Wrong(_Token("word", text[start], start, start + 1), what)
        kind = match.lastgroup
        start, place = match.span(kind)
        found = match[kind]
        quoted = _QUOTED.search(found) is not None
        if quoted:
            found = _QUOTED.sub(lambda q: re.sub(r"\\(.)", r"\1", q[1] or q[2] or ""), found)
        tokens.append(_Token(kind, found, start, place, quoted))
    return [*tokens, _Token("end", "the end", end, end + 1)]


def _pointed(text: str, token: _Token) -> str:
    """The filter with marks under what is wrong."""
    from rich.cells import cell_len

    flat = "".join(character if character.isprintable() else " " for character in text)
    first, last = max(0, token.start - 50), token.end + 20
    before, wrong = flat[first : token.start], flat[token.start : token.end]
    lead, rest = "…" * (first > 0), "…" * (last < len(flat))
    if len(wrong) > 60:
        wrong, last, rest = wrong[:60], token.start + 60, "…"
    line = f"  {lead}{before}{wrong}{flat[token.end : last]}{rest}"
    return f"{line}\n  {' ' * cell_len(lead + before)}{'^' * max(1, cell_len(wrong))}"


class _Parser:
    def __init__(self, connection: Connection, tokens: list[_Token], now: float) -> None:
        self._connection, self._tokens, self._now = connection, tokens, now
        self._place = self._depth = 0

    def parse(self) -> ColumnElement[bool]:
        condition = self._any()
        self._expect("end", "'and', 'or' or the end (a text with spaces needs quotes)")
        return condition

    # Tokens

    @property
    def _next(self) -> _Token:
        return self._tokens[self._place]

    def _take(self) -> _Token:
        self._place += 1
        return self._tokens[self._place - 1]

    def _expect(self, kind: str, what: str, text: str | None = None) -> _Token:
        token = self._next
        if token.kind != kind or (text is not None and token.text != text):
            found = "the end" if token.kind == "end" else f"'{token.text[:60]}'"
            raise _Wrong(token, f"expected {what}, found {found}")
        return self._take()

    def _took(self, word: str) -> bool:
        """Takes the next token if it is this word or mark."""
        token = self._next
        if token.kind == "end" or token.quoted or token.text.lower() != word:
            return False
        self._place += 1
        return True

    # Grammar

    def _any(self) -> ColumnElement[bool]:
        conditions = [self._all()]
        while self._took("or"):
            conditions.append(self._all())
        return sa.or_(*conditions) if len(conditions) > 1 else conditions[0]

    def _all(self) -> ColumnElement[bool]:
        conditions = [self._one()]
        while self._took("and"):
            conditions.append(self._one())
        return sa.and_(*conditions) if len(conditions) > 1 else conditions[0]

    def _one(self) -> ColumnElement[bool]:
        token = self._next
        if not (self._took("not") or self._took("(")):
            return self._condition()
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _Wrong(token, f"more than {_DEEPEST} levels of 'not' and parentheses")
        if token.text == "(":
            condition = self._any()
            self._expect("mark", "')'", ")")
        else:
            condition = sa.not_(self._one())
        self._depth -= 1
        return condition

    def _condition(self) -> ColumnElement[bool]:
        token = self._next
        if token.kind == "word" and not token.quoted and token.text.lower() in _RESERVED:
            raise _Wrong(
                token, f"expected a condition such as status=completed, found '{token.text}'"
            )
        self._expect("word", "a condition such as status=completed")
        try:
            term = resolve(self._connection, token.text)
        except ConfigurationError as error:
            raise _Wrong(token, str(error)) from None
        negated = self._took("not")
        if self._took("in"):
            condition = self._in(term)
            return sa.not_(condition) if negated else condition
        operator = self._expect("operator", "'in'" if negated else "one of = != < <= > >= ~ in")
        if negated:
            raise _Wrong(operator, f"expected 'in' after 'not', found '{operator.text}'")
        return self._compare(term, "=" if operator.text == "==" else operator.text, operator)

    def _in(self, term: Term) -> ColumnElement[bool]:
        operator = self._expect("mark", "'(' after 'in'", "(")
        conditions = [self._compare(term, "=", operator)]
        while self._took(","):
            conditions.append(self._compare(term, "=", operator))
        self._expect("mark", "',' or ')'", ")")
        return sa.or_(*conditions) if len(conditions) > 1 else conditions[0]

    def _value(self, after: str) -> _Token:
        token = self._next
        if token.kind != "word" or (not token.quoted and token.text.lower() in _RESERVED):
            found = "the end" if token.kind == "end" else f"'{token.text}'"
            raise _Wrong(token, f"expected a value after '{after}', found {found}")
        return self._take()

    # Conditions

    def _compare(self, term: Term, operator: str, place: _Token) -> ColumnElement[bool]:
        value = self._value(place.text)
        kind, ordered = term.kind, operator in ("<", "<=", ">", ">=")
        if ordered and kind in ("text", "status", "tags"):
            raise _Wrong(place, f"'{term.text}' is text, which has =, !=, ~ and in")
        if operator == "~" and kind not in ("text", "status", "tags", "setting"):
            raise _Wrong(place, f"'{term.text}' is no text, which alone has ~ (contains)")
        if kind == "metric":
            return self._of_metric(term, operator, value)
        if kind == "setting":
            return self._of_setting(term, operator, value)
        negated, operator = operator == "!=", "=" if operator == "!=" else operator
        condition = self._of_field(term, operator, value)
        # NULL must not come out: "not" would leave it as it is.
        if runs.c[term.text].nullable and not _is_none(value):
            condition = sa.and_(term.column.is_not(None), condition)
        return sa.not_(condition) if negated else condition

    def _of_field(self, term: Term, operator: str, value: _Token) -> ColumnElement[bool]:
        column, text = term.column, value.text
        if _is_none(value) and operator == "=":
            if term.kind == "tags":
                return sa.cast(column, sa.Text) == "[]"
            empty = column.is_(None)
            return sa.or_(empty, column == "") if term.kind == "text" else empty
        if term.kind == "tags":
            # The list as JSON; with LIKE it would depend on the database whether case matters.
            stored, tag = sa.cast(column, sa.Text), json.dumps(text)
            if operator == "~":
                return stored.icontains(tag[1:-1], autoescape=True)
            return sa.func.replace(stored, tag, "") != stored
        if term.kind in ("text", "status"):
            if operator == "~":
                return column.icontains(text, autoescape=True)
            if term.kind == "status" and text not in STATES:
                expected = f"{', '.join(STATES)}.{did_you_mean(text, STATES)}"
                raise _Wrong(value, f"'{text[:60]}' is no status; expected {expected}")
            if term.text == "git_commit" and re.fullmatch("[0-9a-f]{4,39}", text):
                return column.startswith(text)
            return column == text
        if term.kind == "time":
            return _of_time(column, operator, *self._moment(term, value))
        number = self._number(term, value)
        return _OPERATORS[operator](column, number)

    def _of_metric(self, term: Term, operator: str, value: _Token) -> ColumnElement[bool]:
        column, number = term.column, self._number(term, value)
        if math.isnan(number):
            if operator not in ("=", "!="):
                raise _Wrong(
                    value, "nan is neither greater nor smaller: only = and != work with it"
                )
            condition = column.is_(None) if operator == "=" else column.is_not(None)
        elif operator == "!=":
            condition = sa.or_(column != number, column.is_(None))
        else:
            condition = _OPERATORS[operator](column, number)
        return self._runs_with(summaries, term.key, condition)

    def _of_setting(self, term: Term, operator: str, value: _Token) -> ColumnElement[bool]:
        column = term.column
        number = None if value.quoted else _float(value.text)
        if number is not None and math.isfinite(number) and operator != "~":
            if operator == "!=":
                condition = sa.or_(column != number, column.is_(None))
            else:
                condition = _OPERATORS[operator](column, number)
            return self._runs_with(params, term.key, condition)
        if operator not in ("=", "!=", "~"):
            raise _Wrong(value, f"expected a number for '{term.text}', found '{value.text[:60]}'")
        stored, text = params.c.value, json.dumps(value.text)
        if operator == "~":
            condition = stored.icontains(text[1:-1], autoescape=True)
        else:
            words = {"none": "null", "null": "null", "true": "true", "false": "false"}
            word = None if value.quoted else words.get(value.text.lower())
            condition = stored.in_([text] if word is None else [text, word])
            condition = sa.not_(condition) if operator == "!=" else condition
        return _each_run_with(params, term.key, condition)

    def _runs_with(
        self, table: Table, key: str, condition: ColumnElement[bool]
    ) -> ColumnElement[bool]:
        """The runs that have a value of an indexed column, by the way that takes least time."""
        matching = sa.select(table.c.run_id).where(table.c.key == key, condition)
        some = sa.select(sa.func.count()).select_from(matching.limit(_MANY).subquery())
        if self._connection.scalar(some) < _MANY:
            return runs.c.id.in_(matching)
        # A list is full after a few of so many.
        return _each_run_with(table, key, condition)

    def _number(self, term: Term, value: _Token) -> float:
        number = _float(value.text)
        if number is None and term.kind == "seconds" and (age := _AGE.fullmatch(value.text)):
            number = float(age[1]) * _UNITS[age[2]]
        if number is None or (math.isnan(number) and term.kind != "metric"):
            raise _Wrong(value, f"expected a number for '{term.text}', found '{value.text[:60]}'")
        return number

    def _moment(self, term: Term, value: _Token) -> tuple[float, float]:
        """When a span of time begins and ends; an age is a moment, which has no length."""
        if age := _AGE.fullmatch(value.text):
            moment = self._now - float(age[1]) * _UNITS[age[2]]
            return moment, moment
        date = _DATE.fullmatch(value.text)
        try:
            if date is None:
                raise ValueError
            year, month, day, hour, minute, second = (part and int(part) for part in date.groups())
            utc = datetime.timezone.utc
            begin = datetime.datetime(
                year, month, day or 1, hour or 0, minute or 0, second or 0, tzinfo=utc
            )
            if day is None:
                end = begin.replace(year=year + month // 12, month=month % 12 + 1)
            else:
                length = {"days": 1} if hour is None else {"minutes": 1}
                end = begin + datetime.timedelta(
                    **({"seconds": 1} if second is not None else length)
                )
        except (ValueError, OverflowError):
            raise _Wrong(
                value,
                f"expected a time for '{term.text}' such as 2026-11-20, 2026-11-20T10:30 (UTC) or "
                f"7d (7 days ago; s, m, h, d, w), found '{value.text[:60]}'",
            ) from None
        return begin.timestamp(), end.timestamp()


def _each_run_with(table: Table, key: str, condition: ColumnElement[bool]) -> ColumnElement[bool]:
    return (
        sa.select(sa.literal(1))
        .where(table.c.run_id == runs.c.id, table.c.key == key, condition)
        .exists()
    )


def _is_none(value: _Token) -> bool:
    return not value.quoted and value.text.lower() == "none"


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _of_time(column: ColumnElement, operator: str, begin: float, end: float) -> ColumnElement[bool]:
    """A day, say, is a span: ``>`` is after its end, ``>=`` from its beginning."""
    moment = begin == end
    until_end = column <= end if moment else column < end
    return {
        "=": sa.and_(column >= begin, until_end),
        "<": column < begin,
        "<=": until_end,
        ">": sa.not_(until_end),
        ">=": column >= begin,
    }[operator]
