"""Enough of JavaScript to run the one-line operations of the wire vectors, as they stand.

A vector's `operation` is the text that npm bullmq was driven with.  Running that very text, with
Python objects in the place of Node's, replays a vector that nobody has looked at before.  What is
not understood raises `NotUnderstood`; promises do not exist (``await`` is the value itself).
"""

from __future__ import annotations

import collections.abc
import json
import math
import re
import typing

__all__ = ["UNDEFINED", "NotUnderstood", "evaluate"]

Scope = collections.ChainMap[str, typing.Any]
Node = collections.abc.Callable[[Scope], typing.Any]

_TOKEN: typing.Final = re.compile(
    r"""\s*(?:(?P<number>\d+(?:\.\d+)?(?:e[+-]?\d+)?)
    |(?P<text>'(?:[^'\\]|\\.)*')
    |(?P<name>[A-Za-z_$][\w$]*)
    |(?P<sign>=>|===|!==|<=|>=|\+\+|&&|\|\||\.\.\.|[-+*/<>!=(){}\[\],;:.?]))""",
    re.VERBOSE,
)
_WORDS: typing.Final = {
    *("async", "await", "break", "const", "else", "false", "for", "if", "let", "new", "null"),
    *("of", "return", "throw", "true", "undefined"),
}
_BINDING: typing.Final = {"||": 1, "&&": 2, "===": 3, "!==": 3, "<": 4, ">": 4, "<=": 4, ">=": 4}
_BINDING.update({"+": 5, "-": 5, "*": 6, "/": 6})


class _Undefined:
    def __repr__(self) -> str:
        return "undefined"

    def __bool__(self) -> bool:
        return False


UNDEFINED: typing.Final = _Undefined()


class NotUnderstood(Exception):
    """The text uses what this little evaluator does not know."""


class _Break(Exception):
    pass


class _Return(Exception):
    def __init__(self, value: typing.Any) -> None:
        self.value = value


class _Error(Exception):
    """``new Error(text)``."""


def evaluate(text: str, **names: typing.Any) -> typing.Any:
    """The value of a JavaScript expression in which `names` are defined."""
    scope: Scope = collections.ChainMap({**_GLOBALS, **names})
    parser = _Parser(text)
    node = parser.expression()
    parser.expect("")
    return node(scope)


def _number(value: float) -> float:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _plus(left: typing.Any, right: typing.Any) -> typing.Any:
    if isinstance(left, str) or isinstance(right, str):
        return f"{left}{right}"
    return left + right


_OPERATORS: typing.Final[dict[str, collections.abc.Callable[[typing.Any, typing.Any], object]]] = {
    "===": lambda left, right: left == right,
    "!==": lambda left, right: left != right,
    "<": lambda left, right: left < right,
    ">": lambda left, right: left > right,
    "<=": lambda left, right: left <= right,
    ">=": lambda left, right: left >= right,
    "+": _plus,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": lambda left, right: _number(left / right),
}


class _Math:
    ceil = staticmethod(math.ceil)
    floor = staticmethod(math.floor)


_GLOBALS: typing.Final[dict[str, typing.Any]] = {"Math": _Math, "Error": _Error}

_METHODS: typing.Final[dict[type, dict[str, typing.Any]]] = {
    list: {
        "push": lambda items: items.append,
        "map": lambda items: lambda fn: [fn(item) for item in items],
        "filter": lambda items: lambda fn: [item for item in items if fn(item)],
        "sort": lambda items: lambda: sorted(items),
        "length": len,
    },
    str: {"split": lambda text: text.split, "length": len},
}


def _member(thing: typing.Any, name: typing.Any) -> typing.Any:
    if isinstance(thing, dict):
        return thing.get(name, UNDEFINED)
    if isinstance(thing, list) and isinstance(name, int):
        return thing[name] if 0 <= name < len(thing) else UNDEFINED
    if name == "then":  # of a promise, which here is its value
        return lambda fn: fn(thing)
    known = _METHODS.get(type(thing), {}).get(name)
    if known is not None:
        return known(thing)
    found = getattr(thing, name, NotUnderstood)
    if found is NotUnderstood:
        raise NotUnderstood(f"{type(thing).__name__} has no {name}")
    return found


class _Parser:
    """Recursive descent; every method returns a closure that evaluates what it parsed."""

    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str]] = []
        at, text = 0, text.strip()
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise NotUnderstood(text[at : at + 40])
            kind = found.lastgroup or ""
            value = found[kind]
            self.tokens.append(("sign" if value in _WORDS and kind == "name" else kind, value))
            at = found.end()
        self.tokens += [("end", "")] * 3
        self.at = 0

    def next_is(self, *signs: str) -> bool:
        return all(
            kind in ("sign", "end") and value == sign
            for (kind, value), sign in zip(self.tokens[self.at :], signs, strict=False)
        )

    def accept(self, sign: str) -> bool:
        if self.next_is(sign):
            self.at += 1
            return True
        return False

    def expect(self, sign: str) -> None:
        if not self.accept(sign):
            rest = " ".join(value for _, value in self.tokens[self.at : self.at + 8])
            raise NotUnderstood(f"{sign or 'the end'} is expected before {rest!r}")

    def name(self) -> str:
        kind, value = self.tokens[self.at]
        if kind != "name":
            raise NotUnderstood(f"a name is expected, got {value!r}")
        self.at += 1
        return value

    # -- expressions -----------------------------------------------------------------------

    def expression(self) -> Node:
        arrow = self.arrow()
        if arrow is not None:
            return arrow
        target = self.binary(1)
        if self.next_is("=") and not self.next_is("=", "="):
            self.at += 1
            return self.assignment(target, self.expression())
        if self.accept("?"):
            yes = self.expression()
            self.expect(":")
            no = self.expression()
            return lambda scope: yes(scope) if target(scope) else no(scope)
        return target

    def assignment(self, target: Node, value: Node) -> Node:
        place = getattr(target, "place", None)
        if place is None:
            raise NotUnderstood("an assignment to what is no place")

        def assign(scope: Scope) -> typing.Any:
            holder, name = place(scope)
            result = value(scope)
            if isinstance(holder, (dict, list)):
                holder[name] = result
            else:
                setattr(holder, name, result)
            return result

        return assign

    def arrow(self) -> Node | None:
        """``x => ...`` or ``async (x, y) => ...``, or `None` if it is something else."""
        start = self.at
        self.accept("async")
        names: list[str] = []
        if self.accept("("):
            while self.tokens[self.at][0] == "name":
                names.append(self.name())
                self.accept(",")
            whole = self.accept(")")
        else:
            whole = self.tokens[self.at][0] == "name"
            if whole:
                names.append(self.name())
        if not whole or not self.accept("=>"):
            self.at = start
            return None
        body = self.block() if self.next_is("{") else self.expression()

        def function(scope: Scope) -> typing.Any:
            def call(*values: typing.Any) -> typing.Any:
                given = dict(zip(names, values, strict=False))
                try:
                    return body(scope.new_child(given))
                except _Return as returned:
                    return returned.value

            return call

        return function

    def binary(self, lowest: int) -> Node:
        left = self.unary()
        while (sign := self.tokens[self.at][1]) in _BINDING and self.tokens[self.at][0] == "sign":
            if _BINDING[sign] < lowest:
                break
            self.at += 1
            left = self.operation(sign, left, self.binary(_BINDING[sign] + 1))
        return left

    @staticmethod
    def operation(sign: str, left: Node, right: Node) -> Node:
        if sign == "&&":
            return lambda scope: left(scope) and right(scope)
        if sign == "||":
            return lambda scope: left(scope) or right(scope)
        operator = _OPERATORS[sign]
        return lambda scope: operator(left(scope), right(scope))

    def unary(self) -> Node:
        if self.accept("await"):
            return self.unary()
        if self.accept("!"):
            inner = self.unary()
            return lambda scope: not inner(scope)
        if self.accept("-"):
            inner = self.unary()
            return lambda scope: -inner(scope)
        if self.accept("++"):
            return self.increment(self.unary(), 1)
        node = self.postfix(self.primary())
        return self.increment(node, 0) if self.accept("++") else node

    def increment(self, target: Node, answer: int) -> Node:
        """``++n`` answers the new value, ``n++`` the old one."""
        add = self.assignment(target, lambda scope: target(scope) + 1)
        return lambda scope: add(scope) - 1 + answer

    def primary(self) -> Node:
        kind, value = self.tokens[self.at]
        self.at += 1
        if kind == "number":
            number = _number(float(value)) if "." in value or "e" in value else int(value)
            return lambda scope: number
        if kind == "text":
            text = json.loads('"' + value[1:-1].replace("\\'", "'").replace('"', '\\"') + '"')
            return lambda scope: text
        if kind == "name":
            return self.variable(value)
        constants = {"true": True, "false": False, "null": None, "undefined": UNDEFINED}
        if value in constants:
            return lambda scope: constants[value]
        if value == "(":
            inner = self.expression()
            self.expect(")")
            return inner
        if value == "[":
            return self.array()
        if value == "{":
            return self.object()
        if value == "new":
            return self.postfix(self.primary())
        raise NotUnderstood(f"{value!r} in an expression")

    @staticmethod
    def variable(name: str) -> Node:
        def read(scope: Scope) -> typing.Any:
            if name not in scope:
                raise NotUnderstood(f"{name} is not defined")
            return scope[name]

        def place(scope: Scope) -> tuple[typing.Any, str]:
            return next((one for one in scope.maps if name in one), scope.maps[0]), name

        read.place = place  # type: ignore[attr-defined]
        return read

    def array(self) -> Node:
        items: list[Node] = []
        while not self.accept("]"):
            items.append(self.expression())
            self.accept(",")
        return lambda scope: [item(scope) for item in items]

    def object(self) -> Node:
        members: list[tuple[str, Node]] = []
        while not self.accept("}"):
            kind, value = self.tokens[self.at]
            name = value[1:-1] if kind == "text" else value
            self.at += 1
            members.append((name, self.expression() if self.accept(":") else self.variable(name)))
            self.accept(",")

        def build(scope: Scope) -> dict[str, typing.Any]:
            built = {name: node(scope) for name, node in members}
            return {name: value for name, value in built.items() if value is not UNDEFINED}

        return build

    def postfix(self, node: Node) -> Node:
        while True:
            if self.accept("."):
                name = self.tokens[self.at][1]
                self.at += 1
                node = self.access(node, lambda scope, name=name: name)
            elif self.accept("["):
                index = self.expression()
                self.expect("]")
                node = self.access(node, index)
            elif self.accept("("):
                node = self.call(node)
            else:
                return node

    @staticmethod
    def access(holder: Node, name: Node) -> Node:
        def read(scope: Scope) -> typing.Any:
            return _member(holder(scope), name(scope))

        read.place = lambda scope: (holder(scope), name(scope))  # type: ignore[attr-defined]
        return read

    def call(self, function: Node) -> Node:
        arguments: list[Node] = []
        while not self.accept(")"):
            arguments.append(self.expression())
            self.accept(",")
        return lambda scope: function(scope)(*[argument(scope) for argument in arguments])

    # -- statements ------------------------------------------------------------------------

    def block(self) -> Node:
        self.expect("{")
        statements: list[Node] = []
        while not self.accept("}"):
            statements.append(self.statement())

        def run(scope: Scope) -> typing.Any:
            inner = scope.new_child()
            for statement in statements:
                statement(inner)
            return UNDEFINED

        return run

    def statement(self) -> Node:
        if self.next_is("{"):
            return self.block()
        if self.accept("if"):
            return self.conditional()
        if self.accept("for"):
            return self.loop()
        node = self.simple()
        self.accept(";")
        return node

    def simple(self) -> Node:
        if self.accept("return"):
            value = self.expression() if not self.next_is(";") and not self.next_is("}") else None

            def leave(scope: Scope) -> typing.NoReturn:
                raise _Return(UNDEFINED if value is None else value(scope))

            return leave
        if self.accept("break"):

            def stop(scope: Scope) -> typing.NoReturn:
                raise _Break

            return stop
        if self.accept("const") or self.accept("let"):
            return self.declaration()
        return self.expression()

    def declaration(self) -> Node:
        declared: list[tuple[str, Node]] = []
        while True:
            name = self.name()
            self.expect("=")
            declared.append((name, self.expression()))
            if not self.accept(","):
                break

        def declare(scope: Scope) -> None:
            for name, node in declared:
                scope[name] = node(scope)

        return declare

    def conditional(self) -> Node:
        self.expect("(")
        condition = self.expression()
        self.expect(")")
        yes = self.statement()
        no = self.statement() if self.accept("else") else None

        def choose(scope: Scope) -> None:
            if condition(scope):
                yes(scope)
            elif no is not None:
                no(scope)

        return choose

    def loop(self) -> Node:
        self.expect("(")
        if (self.next_is("const") or self.next_is("let")) and self.tokens[self.at + 2][1] == "of":
            self.at += 1
            return self.loop_of(self.name())
        start = None if self.next_is(";") else self.simple()
        self.expect(";")
        condition = None if self.next_is(";") else self.expression()
        self.expect(";")
        step = None if self.next_is(")") else self.expression()
        self.expect(")")
        body = self.statement()

        def run(scope: Scope) -> None:
            inner = scope.new_child()
            if start is not None:
                start(inner)
            try:
                while condition is None or condition(inner):
                    body(inner)
                    if step is not None:
                        step(inner)
            except _Break:
                return

        return run

    def loop_of(self, name: str) -> Node:
        self.expect("of")
        items = self.expression()
        self.expect(")")
        body = self.statement()

        def run(scope: Scope) -> None:
            try:
                for item in items(scope):
                    body(scope.new_child({name: item}))
            except _Break:
                return

        return run
