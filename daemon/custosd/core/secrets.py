"""Secrets in texts, by their own shape or by the name that they stand behind; and taking them out.

Laws:

1. A secret goes as a whole, with its kind said in its place: a private key is all of its lines,
   and what a cut left of one counts as one.
2. Scrubbing what is scrubbed changes nothing.
3. What only looks random stays: digests, identifiers and paths are most of what agents write.
   So a bare run of hex is a secret behind a name that says so, and nowhere else.
4. No text makes it slow (it is linear in the length), and none can hide more than a secret:
   what is taken out is bounded, so nobody can blot out the words that follow.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

Check = Callable[[re.Match[str]], bool]


def _always(_: re.Match[str]) -> bool:
    return True


_MOST_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Detector:
    """One kind of secret. The secret is the pattern's group `s` (`u`), or all of the match.

    `guards` are words in lower case; where none of them is in a text, it is not searched.
    `real` has the last word about a match.
    """

    kind: str
    guards: tuple[str, ...]
    pattern: re.Pattern[str]
    real: Check = _always


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """A text without its secrets; `found` counts them by kind."""

    text: str
    found: dict[str, int]


def scrubbed(text: str, more: Iterable[Detector] = ()) -> Scrubbed:
    """The text with `[redacted KIND]` where a secret was; `more` detectors have their turn last.

    Some 10 µs for a few sentences, some milliseconds for 16 KiB.
    """
    found: dict[str, int] = {}
    detectors = (*DETECTORS, *more)
    for _ in range(_MOST_ROUNDS):
        before = sum(found.values())
        text = _scrubbed_once(text, detectors, found)
        # What was taken out may have been glued to another one.
        if sum(found.values()) == before:
            break
    return Scrubbed(text, found)


def _scrubbed_once(text: str, detectors: Iterable[Detector], found: dict[str, int]) -> str:
    low = text.casefold()
    for detector in detectors:
        for guard in detector.guards:
            if guard in low:
                text = _without(text, detector, found)
                break
    if "private key-----" in low:
        text = _without_key_ends(text, found)
    if any(core in low for core in _CORES):
        text = _without_named(text, text.casefold(), found)
    return text


def without_secrets(text: str) -> str:
    """The text, scrubbed; the same object where there is nothing to take out."""
    return scrubbed(text).text


def _without(text: str, detector: Detector, found: dict[str, int]) -> str:
    groups = [name for name in ("s", "u") if name in detector.pattern.groupindex]

    def mark(match: re.Match[str]) -> str:
        if not detector.real(match):
            return match[0]
        found[detector.kind] = found.get(detector.kind, 0) + 1
        said = f"[redacted {detector.kind}]"
        group = next((name for name in groups if match[name] is not None), None)
        if group is None:
            return said
        start, end = match.start(group) - match.start(), match.end(group) - match.start()
        return match[0][:start] + said + match[0][end:]

    return detector.pattern.sub(mark, text)


# --- By their shape -------------------------------------------------------------------------

_GAP = r"(?:\s|\\[nr])"
_BEGIN = r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
_END = r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
# As it may be quoted, numbered, or have lost its middle; not across a brace, which ends a record.
_WHOLE_KEY = rf"{_BEGIN}(?:(?!-----)[\w+/=\s:,.\\…\"'|>#*-]){{0,20000}}{_END}"
_CUT_KEY = (
    rf"{_BEGIN}(?:{_GAP}+[A-Za-z-]{{3,20}}: [^\s\\]{{1,100}})*"
    rf"(?:(?:{_GAP}+[A-Za-z0-9+/=]{{16,}})+(?:{_GAP}+[A-Za-z0-9+/=]{{1,64}}(?=[\"'…]|\Z))?)?"
)
_KEY_END = re.compile(_END)
_KEY_PIECES = re.compile(rf"({_GAP}+)")
_KEY_WORD = re.compile(r"[A-Za-z0-9+/=]+\Z")
_SHORTEST_KEY_LINE = 16
_LONGEST_KEY = 20_000


def _without_key_ends(text: str, found: dict[str, int]) -> str:
    """Without the rest of private keys whose beginnings were cut off, and no line before that."""
    parts: list[str] = []
    begins = 0
    for match in _KEY_END.finditer(text):
        pieces = _KEY_PIECES.split(text[max(begins, match.start() - _LONGEST_KEY) : match.start()])
        kept, words = len(pieces), 0
        while kept:
            word, is_gap = pieces[kept - 1], kept % 2 == 0
            if word and not is_gap:
                # The last line of a key may be short, no other.
                if not _KEY_WORD.match(word) or (words and len(word) < _SHORTEST_KEY_LINE):
                    break
                words += 1
            kept -= 1
        if words == 1 and len("".join(pieces[kept:]).strip()) < _SHORTEST_KEY_LINE:
            kept = len(pieces)
        before = match.start() - sum(map(len, pieces[kept:]))
        parts += [text[begins:before], "[redacted private key]"]
        found["private key"] = found.get("private key", 0) + 1
        begins = match.end()
    return "".join([*parts, text[begins:]])


# Where a word may begin: also behind a line's end that JSON has escaped.
_EDGE = r"(?:(?<![A-Za-z0-9_-])|(?<=\\[nrt]))"


def _shape(kind: str, guards: str, pattern: str) -> Detector:
    return Detector(kind, tuple(guards.split()), re.compile(pattern))


_SHAPES = (
    Detector("private key", ("private key",), re.compile(_WHOLE_KEY + "|" + _CUT_KEY)),
    _shape("anthropic key", "sk-ant-", r"sk-ant-[A-Za-z0-9_-]{16,}"),
    _shape(
        "openai key",
        "sk-",
        _EDGE + r"sk-(?=[A-Za-z0-9_-]{0,40}\d)[A-Za-z0-9_-]{20,}",
    ),
    _shape(
        "stripe key",
        "k_live_ k_test_ whsec_",
        r"(?:[rs]k_(?:live|test)|whsec)_[A-Za-z0-9]{16,}",
    ),
    _shape(
        "google key",
        "aiza ya29. gocspx- 1//0",
        r"AIza[A-Za-z0-9_-]{30,}|ya29\.[A-Za-z0-9_-]{20,}|GOCSPX-[A-Za-z0-9_-]{20,}"
        r"|1//0[A-Za-z0-9_-]{30,}",
    ),
    _shape(
        "github token",
        "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_",
        r"gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,}",
    ),
    _shape(
        "gitlab token",
        "glpat- gldt- glft- glsoat- glrt- glcbt- glimt- glptt- glagent- gloas-",
        r"gl(?:pat|dt|ft|soat|rt|cbt|imt|ptt|agent|oas)-[A-Za-z0-9_.-]{20,}",
    ),
    _shape("hugging face token", "hf_", _EDGE + r"hf_[A-Za-z0-9]{30,}"),
    _shape("telegram token", ":aa", r"(?<!\d)\d{8,10}:AA[A-Za-z0-9_-]{33}(?![A-Za-z0-9_-])"),
    _shape("npm token", "npm_ _authtoken", r"npm_[A-Za-z0-9]{30,}|(?<=:_authToken=)[^\s\"'\[]{8,}"),
    _shape("pypi token", "pypi-", r"pypi-[A-Za-z0-9_-]{50,}"),
    _shape(
        "slack token",
        "xox xapp- hooks.slack.com",
        r"xox[a-z](?:\.xox[a-z])?-[A-Za-z0-9]+-[A-Za-z0-9-]{8,}|xapp-[A-Za-z0-9-]{20,}"
        r"|hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9_/]{20,}",
    ),
    _shape(
        "discord webhook",
        "/api/webhooks/",
        r"/api/webhooks/\d{10,}/[A-Za-z0-9_-]{30,}",
    ),
    _shape("aws key", "akia asia abia acca", r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Z0-9])"),
    _shape(
        "azure key",
        "accountkey= sharedaccesskey= sig=",
        r"(?:AccountKey|SharedAccessKey)=(?P<s>[A-Za-z0-9+/=]{20,})"
        r"|[?&]sig=(?P<u>[A-Za-z0-9%+/=]{30,})",
    ),
    _shape(
        "service key",
        "dop_v1_ shpat_ lin_api_ dapi hvs. gsk_ xai- pplx- r8_ nvapi- tskey- age-secret-key-1"
        " sg. sq0csp- rubygems_ glsa_ ntn_ figd_",
        _EDGE + r"(?:(?:dop_v1_|shpat_|lin_api_|gsk_|xai-|pplx-|nvapi-|rubygems_|glsa_|ntn_"
        r"|figd_|sq0csp-)[A-Za-z0-9_-]{24,}|r8_[A-Za-z0-9]{30,}|dapi[0-9a-f]{32}|hvs\.[A-Za-z0-9_-]{20,}"
        r"|tskey-[a-z]+-[A-Za-z0-9-]{16,}|AGE-SECRET-KEY-1[A-Z0-9]{40,}"
        r"|SG\.[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_-]{30,})",
    ),
    _shape(
        "service key",
        "dckr_pat_ atatt3 atctt3 hrku- sntrys_ ltai",
        _EDGE + r"(?:dckr_(?:pat|oat)_[A-Za-z0-9_-]{20,}|AT[AC]TT3[A-Za-z0-9_=-]{20,}"
        r"|HRKU-[A-Za-z0-9_-]{20,}|sntrys_[A-Za-z0-9_=+/-]{16,}|LTAI[A-Za-z0-9]{14,26}(?![A-Za-z0-9]))",
    ),
    _shape("mailchimp key", "-us", _EDGE + r"[0-9a-f]{32}-us[0-9]{1,2}(?![0-9a-z])"),
    _shape("twilio key", "ac sk", _EDGE + r"(?:AC|SK)[0-9a-f]{32}(?![A-Za-z0-9])"),
    _shape(
        "discord token",
        ".",
        _EDGE + r"[MNO][\w-]{23,25}\.[\w-]{6}\.[\w-]{27,38}(?![\w-])",
    ),
    _shape("artifactory token", "akc", _EDGE + r"AKC[A-Za-z0-9]{20,}"),
    _shape("custosd token", "cust_", _EDGE + r"cust_[A-Za-z0-9]{4,40}_[A-Za-z0-9_-]{30,}"),
    _shape(
        "json web token",
        "eyj",
        _EDGE + r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)*",
    ),
)

# --- By where they stand --------------------------------------------------------------------


def _place(kind: str, guards: str, pattern: str) -> Detector:
    return Detector(kind, tuple(guards.split()), re.compile(pattern, re.IGNORECASE), _is_filled)


_EMPTY = re.compile(
    r"\[redacted|<|\$|%[({]|\{|\*+\Z|x{3,}\Z|\.\.\.|…"
    r"|(?:none|null|nil|true|false|undefined|string|str|text|bytes|bool|boolean|int|integer|number"
    r"|float|optional|required|any|object|type|self|this|input|prompt|hidden|secret|password"
    r"|passwd|token|credentials?|redacted|omitted|removed)\Z"
    r"|(?:changeme|example|placeholder|your|my|some|fake|dummy)[-_ ]?(?:[a-z]+[-_ ]?)*\Z",
    re.IGNORECASE,
)
_REFERENCE = re.compile(r"(?:[A-Za-z_]\w*\.)+[A-Za-z_]\w*\Z|[A-Za-z_]+\Z")
_A_PATH = re.compile(r"[.~]{0,2}/[\w.-]+(?:/|\Z)")


def _is_filled(match: re.Match[str]) -> bool:
    """Whether there is a value, and not a word for one."""
    groups = match.groupdict()
    return not _EMPTY.match(groups.get("s") or groups.get("u") or "")


_PLACES = (
    _place(
        "authorization",
        "authorization",
        r"authorization\\{0,4}[\"']?\s{0,3}[:=,]\s{0,3}\\{0,4}[\"']?"
        r"(?:(?:bearer|basic|token|digest|apikey|api-key|bot|negotiate|aws4[a-z0-9-]+)\s{1,3}"
        r"(?P<s>[^\s\"',;\\]{6,})|(?P<u>(?=[^\s\"',;\\]{0,200}\d)[^\s\"',;\\(){}\[\]]{16,}))",
    ),
    _place(
        "bearer token",
        "bearer",
        _EDGE + r"bearer\s{1,3}(?P<s>(?=\S{0,200}\d)[A-Za-z0-9._~+/=-]{12,})",
    ),
    _place(
        "login in a URL",
        "://",
        r"://[^/\s:@\"']{0,100}:(?P<s>(?!\d{1,5}/)[^\s\"'\[\]?#]{1,200})@(?=[\w.\[-])"
        r"|://(?P<u>(?=[^/\s:@\"']{0,200}\d)[A-Za-z0-9_-]{20,200})@",
    ),
    _place(
        "cookie",
        "cookie:",
        _EDGE + r"(?:set-)?cookie:\s{0,3}[\w.-]{1,100}=(?P<s>[^\r\n\"'\\]{6,2000})",
    ),
    _place(
        "option",
        "--passw --token --secret --api --access-token --client-secret",
        r"--(?:password|passwd|token|secret|api-?key|access-token|client-secret)[= ]{1,3}"
        r"[\"']?(?P<s>(?!-)[^\s\"'\\]{6,200})",
    ),
    _place("option", "sshpass", r"sshpass\s+-p\s*[\"']?(?P<s>[^\s\"'\\\[\]]{3,200})"),
    _place(
        "login",
        "machine",
        r"machine\s{1,9}\S{1,200}\s{1,9}login\s{1,9}\S{1,200}\s{1,9}password\s{1,9}"
        r"(?P<s>[^\s\"'\\\[\]]{3,200})",
    ),
    _place(
        "login",
        "curl",
        r"curl(?=\s)(?:[^\r\n\\]|\\(?:\r?\n|.)){0,300}?"
        r"\s(?:-u|--user)[= ]?\s{0,3}[\"']?[^\s:\"']{1,100}:"
        r"(?P<s>[^\s\"'\\\[\]]{3,200})",
    ),
    _place(
        "option",
        "mysql mariadb",
        r"(?:mysql\w*|mariadb\w*)(?=\s)[^\r\n]{0,300}?\s-p(?P<s>[^\s\"'\\\[\]]{3,200})",
    ),
    _place(
        "option",
        "login",
        r"login(?=\s)[^\r\n]{0,300}?\s-p[= ]?\s{0,3}[\"']?(?P<s>(?!-)[^\s\"'\\\[\]]{3,200})",
    ),
    _place("option", "pass:", r"(?<=\spass:)(?P<s>[^\s\"'\\\[\]]{4,200})"),
    _place(
        "login",
        "auth",
        r"[\"']auth[\"']\s{0,3}:\s{0,3}[\"'](?P<s>[A-Za-z0-9+/]{16,}={0,2})[\"']",
    ),
    Detector(
        "told secret",
        tuple(
            f"{name} {verb}"
            for name in ("password", "passphrase", "api key", "token")
            for verb in ("is", "was", "to")
        ),
        re.compile(
            _EDGE + r"(?:password|passphrase|api key|token) (?:is|was|to)\s{0,3}:?\s{0,3}[\"'`]?"
            r"(?P<s>(?=[^\s\"'`]{0,60}\d)(?=[^\s\"'`]{0,60}[A-Za-z])[^\s\"'`,;()\[\]]{6,200})",
            re.IGNORECASE,
        ),
        _is_filled,
    ),
)

DETECTORS: tuple[Detector, ...] = (*_SHAPES, *_PLACES)

# --- By the name before it ------------------------------------------------------------------

_CORES = ("pass", "pwd", "secret", "credential", "key", "token")
"""Each name has one of them; they are looked for first, for that is fast."""

_OF_KEYS = tuple(
    kind + joint
    for kind in ("api", "access", "private", "secret", "signing", "encryption", "master", "hmac",
                 "session", "auth", "client", "service", "account", "shared", "deploy", "webhook",
                 "ssh")
    for joint in ("", "_", "-")
)  # fmt: skip
"""What stands before "key" where it is a secret one."""

_ASSIGNED = re.compile(
    r"(?P<name>pass(?:w(?:or)?d|phrase|code)?|pwd|secret|credentials?|key|token)"
    r"(?:[_-]?(?:key|id|value|hash|base|base64|b64|hex|old|new|prod|dev|test|live|\d{1,3})){0,2}"
    r"\\{0,4}[\"'`]?\]?\s{0,3}(?::=|=>|={1,2}|:(?:\s{0,3}[a-z_][\w\[\]|. ]{0,40}?=)?)\s{0,3}"
    r"(?:(?P<q>\\{0,4}[\"'`])(?P<s>(?:(?!(?P=q)|\\n)[^\r\n]){4,300})(?P=q)"
    r"|(?P<u>[^\s\"'`\\,;(){}<>\[\]]{6,300}))"
)
"""A name with its value, all in lower case."""

_SHORTEST_TOKEN = 12


def _without_named(text: str, low: str, found: dict[str, int]) -> str:
    """Without the values behind names that say that they are secret."""
    if len(low) != len(text):
        low = "".join(c.lower() if c.isascii() else c for c in text)
    parts: list[str] = []
    begins = 0
    for at in sorted(set(_places_of(low))):
        match = _ASSIGNED.match(low, at) if at >= begins else None
        if match is None:
            continue
        group = "s" if match["s"] is not None else "u"
        start, end = match.span(group)
        name, value = text[at : match.end("name")], text[start:end]
        if _is_secret(name, value, low, at, quoted=group == "s") or (
            name.lower() != "token" and _is_yaml(low, at, start, end, value)
        ):
            parts += [text[begins:start], "[redacted named secret]"]
            found["named secret"] = found.get("named secret", 0) + 1
            begins = end
    return "".join([*parts, text[begins:]]) if parts else text


def _places_of(low: str) -> Iterable[int]:
    for core in _CORES:
        at = low.find(core)
        while at >= 0:
            yield at
            at = low.find(core, at + len(core))


_KEY_OF_A_LINE = re.compile(r"(?:\A|[\r\n]|\\n)[ \t]{0,40}(?:- )?[a-z0-9_.-]{0,40}\Z")
_COLON = re.compile(r"[a-z0-9_-]{0,40}: {1,3}\Z")
_LINE_ENDS = re.compile(r"[ \t]{0,9}(?:\Z|[\r\n]|\\[nr]|\"|')")
_BARE_WORD = re.compile(r"(?!secret|string|password|token)[a-z]{8,}\Z")


def _is_yaml(low: str, at: int, start: int, end: int, value: str) -> bool:
    """Whether a bare word is all that a line says of a password, as in a file of settings.

    In lower case: a name that begins with a capital is a type's.
    """
    if not _BARE_WORD.match(value) or _EMPTY.match(value):
        return False
    before = low[max(0, at - 90) : at]
    return bool(
        _PASSWORDS.match(low, at)
        and _COLON.search(low[at:start])
        and _LINE_ENDS.match(low, end)
        and _KEY_OF_A_LINE.search(before)
    )


_PASSWORDS = re.compile(r"pass(?:w(?:or)?d|phrase|code)?|pwd|secret")


def _is_secret(name: str, value: str, low: str, at: int, *, quoted: bool) -> bool:
    """Whether it is a secret's name, and its value, and not code that fetches it."""
    match name.lower():
        case "pass" if low[max(0, at - 1) : at] not in {"_", "-"}:
            return False
        case "key" if not low.endswith(_OF_KEYS, 0, at):
            return False
        case "token":
            mixed = any(c.isdigit() for c in value) and any(c.isalpha() for c in value)
            if not mixed or len(value) < _SHORTEST_TOKEN:
                return False
        case _:
            pass
    if _EMPTY.match(value) or _A_PATH.match(value):
        return False
    return quoted or name.isupper() or not _REFERENCE.match(value)
