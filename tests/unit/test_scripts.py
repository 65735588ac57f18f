"""The scripts' headers say what the scripts do.

A header is all that a caller reads, and the keys are filled by it: what it names is used, and what
is used it names.  Only functions that a script reaches count, for a fragment may hold others.
"""

from __future__ import annotations

import functools
import importlib.resources
import re
import typing

import pytest

from geventq.store.keys import Keys, MemberKeys, QueueKeys, RequestKeys
from geventq.store.scripts import Script, load

LUA: typing.Final = importlib.resources.files("geventq.store") / "lua"
NAMES: typing.Final = sorted(
    file.name.removesuffix(".lua") for file in LUA.iterdir() if file.name.endswith(".lua")
)
PARTS: typing.Final = ["KEYS", "Also", "ARGV", "Reply", "Events"]
OPTIONAL: typing.Final = {"Also"}

every_script = pytest.mark.parametrize("name", NAMES)


@functools.cache
def header(name: str) -> dict[str, str]:
    """The parts of a script's header, continuation lines joined."""
    text = (LUA / f"{name}.lua").read_text(encoding="utf-8")
    comment = re.match(r"(?:--.*\n)+", text)
    assert comment is not None, "a script begins with its header"
    parts = re.findall(r"^-- ([A-Z]\w+) +(.+(?:\n--  +.+)*)", comment[0], re.MULTILINE)
    return {
        part: re.sub(r"\s*\n--\s*", "  ", said)
        for part, said in parts
        if part in PARTS or part.isupper()
    }


@functools.cache
def reached(name: str) -> str:
    """The script without its comments and without the functions that it does not call."""
    script = load(name)
    source = script.source.partition("\n\n")[2]  # before it: the keys, and who may call it
    source = re.sub(  # where numbers stand for them
        r"\bkeys\[(\d+)\]", lambda place: f"keys.{script.key_names[int(place[1]) - 1]}", source
    )
    functions = {
        match[1]: match[0]
        for match in re.finditer(r"^local function (\w+)\(.*?^end$", source, re.M | re.S)
    }
    main = re.sub(r"^local function \w+\(.*?^end$", "", source, flags=re.M | re.S)
    seen: dict[str, str] = {}
    open_ = [main]
    while open_:
        body = open_.pop()
        for called in set(re.findall(r"\b\w+\b", body)) & functions.keys() - seen.keys():
            seen[called] = functions[called]
            open_.append(functions[called])
    return main + "\n".join(seen.values())


@every_script
def test_a_header_has_all_its_parts_in_order(name: str) -> None:
    parts = list(header(name))
    assert parts == [part for part in PARTS if part in parts]
    assert set(PARTS) - set(parts) <= OPTIONAL


@every_script
def test_the_keys_of_a_header_are_keys_of_a_queue_a_job_a_request_or_a_worker(name: str) -> None:
    queue = QueueKeys("p", "q")
    keys: Keys = queue.of_job("7")
    if name in ("cancel", "reply"):
        keys = RequestKeys(queue, "n")
    elif name == "heartbeat":
        keys = MemberKeys(queue, "w")
    assert header(name)["KEYS"].split() == list(load(name).key_names)
    for key in load(name).key_names:
        assert getattr(keys, key).startswith("p:q:")


@every_script
def test_a_script_uses_the_keys_that_its_header_names_and_no_others(name: str) -> None:
    code = reached(name)
    used = set(re.findall(r"\bkeys\.(\w+)", code))
    if "base" in used:
        assert "keys.base = ARGV[1]" in code
    assert used - {"base"} == set(load(name).key_names)
    assert "KEYS[" not in code


@every_script
def test_a_script_uses_the_arguments_that_its_header_names_and_no_others(name: str) -> None:
    said = header(name)["ARGV"]
    documented = re.findall(r"(?:^|  )(\d+)(\.\.\.)? ", f"{said} ")
    assert documented or said == "none"
    assert [int(number) for number, _ in documented] == list(range(1, len(documented) + 1))
    repeated = [more for _, more in documented if more]
    assert len(repeated) <= 1 and (not repeated or documented[-1][1])
    code = reached(name)
    fixed = {int(number) for number in re.findall(r"ARGV\[(\d+)\]", code)}
    single = {int(number) for number, more in documented if not more}
    assert fixed == single
    assert bool(repeated) == ("#ARGV" in code)


@every_script
def test_a_header_names_the_keys_that_are_made_from_the_base(name: str) -> None:
    """They are not declared in KEYS: `:lock` stands for one of each job, `de:` for one of each
    deduplication id, `<id>` for the jobs themselves."""
    code = reached(name)
    made = set(re.findall(r"\.\. '(:[a-z]+)'", code))
    made |= set(re.findall(r"(?:\bbase|ARGV\[\d\]) \.\. '([a-z]+:)", code))
    if re.search(r"(?:\bbase|ARGV\[1\]) \.\. [a-zA-Z]", code):
        made.add("<id>")
    made -= {":"}
    assert set(header(name).get("Also", "").split()) == made


@every_script
def test_a_script_calls_no_function_that_is_not_there(name: str) -> None:
    """Lua tells only when it comes to it."""
    code = re.sub(r"'[^'\n]*'", "''", reached(name))
    defined = set(re.findall(r"function (\w+)", code)) | set(re.findall(r"local (\w+)", code))
    called = set(re.findall(r"(?<![.\w:])([a-z_]\w*)\(", code))
    lua = {"ipairs", "pairs", "pcall", "error", "tonumber", "tostring", "type", "unpack"}
    words = {"function", "if", "elseif", "and", "or", "not", "return", "while", "in", "until"}
    assert called - defined - lua - words == set()


@every_script
def test_a_script_calls_a_function_where_it_is_in_sight(name: str) -> None:
    """Fragments are brought into blocks: what one block has, the next one may need anew."""
    code = re.sub(r"'[^'\n]*'", "''", load(name).source)
    functions = set(re.findall(r"local function (\w+)", code))
    in_sight: list[tuple[int, str]] = []
    for line in code.splitlines():
        margin = len(line) - len(line.lstrip())
        while line.strip() and in_sight and margin < in_sight[-1][0]:
            in_sight.pop()
        if made := re.match(r" *local (?:function )?(\w+(?:, \w+)*)", line):
            in_sight += [(margin, one) for one in made[1].split(", ")]
        if given := re.search(r"function \w*\(([\w, ]*)\)$", line):
            in_sight += [(margin + 1, one) for one in given[1].split(", ")]
        called = set(re.findall(r"(?<![.\w:])([a-z_]\w*)\(", line)) & functions
        assert called <= {one for _, one in in_sight}, line


@every_script
def test_a_header_names_the_events(name: str) -> None:
    said = set(re.findall(r"[a-z-]+", header(name)["Events"]))
    told = set(re.findall(r"'event', '([a-z-]+)'", reached(name)))
    assert told <= said
    assert told or said == {"none"}


def test_the_names_that_a_script_takes_for_no_jobs_are_those_that_are_refused() -> None:
    from geventq import checks

    text = (LUA / "fragments" / "reserved.lua").read_text(encoding="utf-8")
    words = {
        name: " ".join(re.findall(r"'([^']*)'", found[1])).split()
        for name in ("RESERVED", "PARTS")
        if (found := re.search(rf"local {name} = ((?:\s*(?:\.\. )?'[^']*')+)", text))
    }
    assert {*words["RESERVED"], "repeat"} == checks._RESERVED_IDS
    assert set(words["PARTS"]) == checks._PARTS_OF_A_JOB


def test_a_script_without_named_keys_is_refused() -> None:
    with pytest.raises(ValueError, match="KEYS"):
        Script("odd", "-- Reply  1\n\nreturn 1\n")


def test_a_call_that_lacks_a_key_is_refused() -> None:
    with pytest.raises(AttributeError, match="lock"):
        load("extend_lock").pack(QueueKeys("p", "q"), [])
