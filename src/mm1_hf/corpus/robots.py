"""
What the owners of web pages ask of programs: `robots.txt` (RFC 9309), and the headers by which they opt out of the training
of models.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes, urlsplit


# RFC 9309 asks programs to read at least this number of bytes of a robots.txt. The rest is ignored.
MAX_ROBOTS_BYTES = 500 * 1024
# Directives of the header X-Robots-Tag that forbid what is done here. `noai` and `noimageai` are DeviantArt's, and the
# others are those of search engines.
OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex"})

_WITH_VALUE = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")


@dataclass(frozen=True)
class RobotRules:
    """
    The rules of a `robots.txt` for one program.

    Args:
        rules: `(pattern, allowed)` in the order of the file. In a pattern, `*` stands for any characters, and `$` at its
            end for the end of the address.
    """

    rules: tuple[tuple[str, bool], ...] = ()

    def allow(self, url: str) -> bool:
        """
        Whether an address may be fetched. Of the patterns that match it, the longest one decides; of equally long ones,
        one that allows it.

        Args:
            url: an `http` or `https` URL.
        """
        parts = urlsplit(url)
        target = _normal((parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
        matching = [(len(pattern), allowed) for pattern, allowed in self.rules if matches(pattern, target)]
        return max(matching, default=(0, True))[1]


def robot_rules(text: str, agent: str) -> RobotRules:
    """
    Reads the rules of a `robots.txt` for one program: those of all groups that name it, or else those for all programs.

    Args:
        text: the content of the file.
        agent: name of the program, without a version. Upper and lower case are the same.
    """
    named: list[tuple[str, bool]] = []
    general: list[tuple[str, bool]] = []
    agents: set[str] = set()
    in_rules = named_any = False
    # What another program might take for an end of line would hide a rule.
    for line in re.split(r"\r\n|\r|\n", text[:MAX_ROBOTS_BYTES].removeprefix("\ufeff")):
        key, colon, value = line.partition("#")[0].partition(":")
        key, value = key.strip().lower(), value.strip()
        if not colon:
            continue
        if key == "user-agent":
            if in_rules:
                agents, in_rules = set(), False
            agents.add(re.split(r"[/\s]", value.lower())[0])
            named_any |= agent.lower() in agents
        elif key in ("allow", "disallow"):
            in_rules = True
            # An empty rule means nothing: "Disallow:" allows everything.
            if value:
                rule = (_normal(value), key == "allow")
                named.extend([rule] * (agent.lower() in agents))
                general.extend([rule] * ("*" in agents))
    return RobotRules(tuple(named if named_any else general))


def matches(pattern: str, target: str) -> bool:
    """
    Whether a pattern of a `robots.txt` matches the start of an address, or all of it if the pattern ends in `$`. Takes
    time proportional to both lengths at most, whatever the pattern is.

    Args:
        pattern: the pattern, in which `*` stands for any characters.
        target: path and query of the address.
    """
    whole = pattern.endswith("$")
    pieces = pattern.removesuffix("$").split("*")
    if not target.startswith(pieces[0]):
        return False
    place = len(pieces[0])
    for piece in pieces[1:-1]:
        found = target.find(piece, place)
        if found < 0:
            return False
        place = found + len(piece)
    if len(pieces) == 1:
        return not whole or place == len(target)
    if whole:
        return len(target) - len(pieces[-1]) >= place and target.endswith(pieces[-1])
    return target.find(pieces[-1], place) >= 0


def opted_out(headers: Iterable[tuple[str, str]], agent: str) -> str | None:
    """
    The header by which an answer asks not to be used, or `None`: `X-Robots-Tag` with one of `OPT_OUTS`, for all programs
    or for this one, or `TDM-Reservation: 1` (W3C's TDM Reservation Protocol).

    Args:
        headers: names and values of the answer's headers.
        agent: name of the program, without a version.
    """
    for name, value in headers:
        if name.lower() == "tdm-reservation" and value.strip() == "1":
            return "TDM-Reservation: 1"
        if name.lower() == "x-robots-tag":
            addressed = True
            for directive in value.lower().split(","):
                before, colon, after = directive.partition(":")
                # "otherbot: noai" is said to that program alone, and so is what follows in the same header.
                if colon and before.strip() not in _WITH_VALUE:
                    addressed = before.strip() in ("*", agent.lower())
                    directive = after
                if addressed and directive.strip() in OPT_OUTS:
                    return f"X-Robots-Tag: {directive.strip()}"
    return None


def _normal(target: str) -> str:
    """An address in one of the spellings that mean the same: `%41` is `A`, and `é` is `%C3%A9`."""
    # The characters that end a part of an address are another thing when they are quoted.
    kept = re.sub(r"%(2[3456Ff]|3[Ff]|2[aA])", r"%25\1", target)
    return quote(unquote_to_bytes(kept), "%/:=&?~+!$,;'@()*[]#")


__all__ = ["OPT_OUTS", "RobotRules", "matches", "opted_out", "robot_rules"]
