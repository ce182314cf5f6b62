"""What a goal is about, in words that can be compared with the files that work touches.

A goal names files ("parser.py"), directories ("src/auth/") and things in code
("`read_token`", "HttpClient"). Work is on the goal when a path's parts share a word
with any of them. Prose words are not used: they match everything or nothing.
"""

import re

TOPICS_KEPT = 32
_SCANNED_CHARS = 8_000

# One run of characters at a time, never a pattern with two ways to match the same text:
# what people paste may be built to make a search take for ever.
_TOKEN = re.compile(r"[\w./-]+")
_QUOTED = re.compile(r"`([^`\n]{2,60})`")
_IDENTIFIER = re.compile(
    r"\b(?:[a-z]+_[a-z_]+|[A-Z][a-z]+(?:[A-Z][a-z]+)+|[a-z]+(?:[A-Z][a-z]+)+)\b"
)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_URL = re.compile(r"\b[a-z]{2,12}://\S+")
_DOCUMENTS = re.compile(
    r"(?:^|/)(?:readme|changelog|contributing|authors|license|notice|todo)[^/]*$"
    r"|\.(?:md|rst|txt|adoc|css|scss|less|svg)$|(?:^|/)(?:docs?|documentation|styles?|assets)/",
    re.IGNORECASE,
)
_ABOUT_DOCUMENTS = re.compile(
    r"\b(?:readme|docs?|document(?:s|ation|ed|ing)?|changelog|style[sd]?|styling|css|layout|"
    r"guide|tutorial|comment(?:s|ed)?|docstrings?|write-?up|report|markdown|design)\b|\.(?:md|rst|css|txt)\b",
    re.IGNORECASE,
)
_NEW_FILES = re.compile(
    r"\b(?:creat\w*|writ(?:e|ing)|generat\w*|build|scaffold|new\s+(?:file|module|script|project|app)|"
    r"set\s+up|from\s+scratch)\b",
    re.IGNORECASE,
)
_SHORTEST_WORD = 3
_GENERIC = frozenset(
    {
        "src",
        "lib",
        "app",
        "test",
        "tests",
        "the",
        "main",
        "init",
        "index",
        "core",
        "py",
        "js",
        "ts",
        "tsx",
        "jsx",
        "java",
        "go",
        "rs",
        "md",
        "txt",
        "json",
        "workspace",
        "home",
        "users",
        "user",
        "tmp",
        "usr",
        "file",
        "files",
        "com",
        "org",
        "net",
        "www",
        "http",
        "https",
        "github",
    }
)
CODE_ENDINGS = frozenset(
    {
        "py",
        "pyi",
        "js",
        "jsx",
        "ts",
        "tsx",
        "java",
        "go",
        "rs",
        "c",
        "h",
        "cc",
        "cpp",
        "hpp",
        "cs",
        "rb",
        "php",
        "swift",
        "kt",
        "scala",
        "sh",
        "sql",
        "html",
        "vue",
        "css",
        "toml",
        "yaml",
        "yml",
        "json",
        "xml",
        "ini",
        "cfg",
        "md",
        "rst",
        "txt",
        "lua",
        "pl",
        "ex",
        "exs",
        "hs",
        "ml",
    }
)


def topics_of(goal: str) -> tuple[str, ...]:
    """The words that a goal's files, directories and identifiers are made of, sorted.

    At most 32, from the first 8,000 characters; empty where the goal names none.
    """
    text = _URL.sub(" ", goal[:_SCANNED_CHARS])
    named = [*_paths(text), *_QUOTED.findall(text), *_IDENTIFIER.findall(text)]
    words: dict[str, None] = {}
    for name in named:
        for word in sorted(words_of(name)):
            words.setdefault(word)
    return tuple(sorted(list(words)[:TOPICS_KEPT]))


def _paths(text: str) -> list[str]:
    """The tokens that look like a directory, or like a file with an ending of code."""
    found = []
    for token in _TOKEN.finditer(text):
        path = token[0].strip(".-")
        ending = path.rpartition(".")[2].lower() if "." in path else ""
        called = text[token.end() : token.end() + 1] == "("
        if path.endswith("/") or (ending in CODE_ENDINGS and not called):
            found.append(path)
    return found


def words_of(path: str) -> set[str]:
    """The telling words in a path or identifier, in lower case."""
    stem = re.sub(r"\.[A-Za-z]\w{0,4}$", "", path)
    words = {word.lower() for word in _WORD.findall(stem)}
    return {w for w in words if len(w) >= _SHORTEST_WORD} - _GENERIC


def is_document(path: str) -> bool:
    """Whether a path is prose or styling rather than code."""
    return bool(_DOCUMENTS.search(path))


def wants_documents(goal: str) -> bool:
    """Whether a goal asks for prose or styling."""
    return bool(_ABOUT_DOCUMENTS.search(goal[:_SCANNED_CHARS]))


def wants_files(goal: str) -> bool:
    """Whether a goal may be met by new files alone."""
    return bool(_NEW_FILES.search(goal[:_SCANNED_CHARS]))
