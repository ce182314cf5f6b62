"""custosd watches fleets of AI agents, judges where each one is going, and acts."""

__version__ = "0.1.0"
