"""The family of custosd's own errors. Each port adds one branch; see `custosd.ports`."""


class CustosdError(Exception):
    """Anything that custosd itself raises; the message names the place and a remedy."""


class ConfigError(CustosdError):
    """The configuration cannot be used; carries every problem found, not the first."""
