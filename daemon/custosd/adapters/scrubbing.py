"""Takes secrets out of texts before they leave the machine, or are written down.

`custosd.core.secrets` does it, and its `without_secrets` is the one for all that is written
down. For what leaves to models there is a second look: the patterns of the library
bc-detect-secrets that find a secret by its shape. Its entropy detectors are left out: they take
every digest and identifier of a transcript for a secret. So is its keyword detector: it finds
assignments in source files, and little in a conversation.
"""

from functools import cache
from typing import Any

from custosd.core.secrets import Detector, Scrubbed
from custosd.core.secrets import scrubbed as scrubbed_with

# Those with a word in front by which a text can be passed over; the words are in lower case.
_PLUGINS = {
    "artifactory.ArtifactoryDetector": ("akc",),
    "aws.AWSKeyDetector": ("a3t", "abia", "acca", "akia", "asia"),
    "azure_storage_key.AzureStorageKeyDetector": ("accountkey=",),
    "discord.DiscordBotTokenDetector": (".",),
    "mailchimp.MailchimpDetector": ("-us",),
    "sendgrid.SendGridDetector": ("sg.",),
    "slack.SlackDetector": ("xox", "hooks.slack.com"),
    "square_oauth.SquareOAuthDetector": ("sq0csp-",),
    "stripe.StripeDetector": ("k_live",),
    "twilio.TwilioKeyDetector": ("ac", "sk"),
}


def scrubbed(text: str) -> Scrubbed:
    """The text with `[redacted KIND]` where a secret was; some milliseconds for 16 KiB."""
    return scrubbed_with(text, library_detectors())


@cache
def library_detectors() -> tuple[Detector, ...]:
    """The library's patterns; the first call takes a fifth of a second."""
    # At the first use: no command that scrubs nothing should wait for it.
    from importlib import import_module  # noqa: PLC0415 - see above

    made: list[Detector] = []
    for name, guards in _PLUGINS.items():
        module, _, kind = name.partition(".")
        plugin: Any = getattr(import_module(f"detect_secrets.plugins.{module}"), kind)()
        # The patterns and not the plugin's own search, which tells of some secrets only a part.
        kind_words = str(plugin.secret_type).lower()
        # Nor those with a group, which go by words nearby: our own take the value and leave them.
        made += [
            Detector(kind_words, guards, pattern)
            for pattern in plugin.denylist
            if not pattern.groups
        ]
    return tuple(made)
